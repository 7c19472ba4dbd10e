"""First-order importance of parameters, computed as gradients arrive, so that memory holds one gradient at a time."""

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
    """One parameter of a model and its location.

    Attributes:
        name: as in the model.
        layer: number of its decoder layer; None outside the layers.
        module: its module within the layer (`self_attn.q_proj`), or the whole module name outside the layers.
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
    """Inside the block, `loss.backward()` passes each gradient to `take` as soon as it is complete, and frees it.

    A tied parameter (embedding and head) arrives once, with both contributions. Other parameters get no gradient. The
    embedding of the padding token gets a gradient like any other, because the same token may end a turn. On exit,
    `requires_grad` and `.grad` are restored.

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
            tensor.grad = None  # a gradient that a user left there would be added
            tensor.requires_grad_(id(tensor) in wanted)

        for module in model.modules():
            if isinstance(module, nn.Embedding):
                stack.callback(setattr, module, "padding_idx", module.padding_idx)
                module.padding_idx = None  # else torch excludes its row from the gradient

        def arrived(tensor: nn.Parameter) -> None:
            gradient, tensor.grad = tensor.grad, None
            assert gradient is not None
            take(wanted[id(tensor)], gradient)

        for parameter in parameters:
            stack.callback(parameter.tensor.register_post_accumulate_grad_hook(arrived).remove)
        yield


def absolute_sum(values: Tensor) -> Tensor:
    """Sum of absolute values: float32 within rows (float32 over a whole matrix is off by percents), then
    `sum_dtype`."""
    rows = values.reshape(-1, values.shape[-1] if values.dim() else 1)
    return torch.linalg.vector_norm(rows, 1, dim=-1, dtype=torch.float32).sum(dtype=sum_dtype(rows.device))
