"""First-order importance of parameters, taken as the gradients arrive: no two layers' gradients are held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lsm_probe.errors import InputError
from lsm_probe.hardware import sum_dtype
from lsm_probe.models.quantisation import is_packed


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model and where it stands.

    Attributes:
        name: as in the model.
        layer: number of its decoder layer; None outside of them.
        module: what it belongs to within its layer (`self_attn.q_proj`), or its whole module name outside.
        tensor: the parameter.
    """

    name: str
    layer: int | None
    module: str
    tensor: nn.Parameter

    @property
    def is_matrix(self) -> bool:
        """False for norms and biases."""
        return self.tensor.dim() >= 2


Take = Callable[[Parameter, Tensor], None]
"""Called with each parameter and its gradient, which is freed afterwards."""


@contextmanager
def gradients_taken(model: nn.Module, parameters: Sequence[Parameter], take: Take) -> Iterator[None]:
    """Inside, `loss.backward()` hands each gradient to `take` as soon as it is whole, and frees it.

    A tied parameter (embedding and head) arrives once, with both its parts. Other parameters get no gradient. The
    embedding of the padding token learns as any other: the same token may end a turn. On leaving, `requires_grad` and
    what `.grad` held are as they were.

    Raises:
        InputError: a parameter is quantised, so that it has no gradient.
    """
    wanted = {id(parameter.tensor): parameter for parameter in parameters}
    for parameter in parameters:
        if is_packed(parameter.tensor):
            kind = f"{type(parameter.tensor).__name__}, {parameter.tensor.dtype}"
            raise InputError(f"{parameter.name} is quantised ({kind}) and has no gradient: load it in float32")
    with ExitStack() as stack:
        for tensor in model.parameters():
            stack.callback(tensor.requires_grad_, tensor.requires_grad)
            stack.callback(setattr, tensor, "grad", tensor.grad)
            tensor.grad = None  # what a user left there would be added in
            tensor.requires_grad_(id(tensor) in wanted)

        for module in model.modules():
            if isinstance(module, nn.Embedding):
                stack.callback(setattr, module, "padding_idx", module.padding_idx)
                module.padding_idx = None  # torch leaves its row out of the gradient

        def arrived(tensor: nn.Parameter) -> None:
            gradient, tensor.grad = tensor.grad, None
            assert gradient is not None
            take(wanted[id(tensor)], gradient)

        for parameter in parameters:
            stack.callback(parameter.tensor.register_post_accumulate_grad_hook(arrived).remove)
        yield


def absolute_sum(values: Tensor) -> Tensor:
    """Sum of absolute values: each row in float32 (a whole matrix would lose whole per cents), rows in `sum_dtype`."""
    rows = values.reshape(-1, values.shape[-1] if values.dim() else 1)
    return torch.linalg.vector_norm(rows, 1, dim=-1, dtype=torch.float32).sum(dtype=sum_dtype(rows.device))
