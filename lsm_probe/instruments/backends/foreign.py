"""The backend interface, and the code that backends for other libraries share."""

from __future__ import annotations

import copy
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lsm_probe.errors import InputError, SampleFault
from lsm_probe.extras import install_command
from lsm_probe.instruments.capture import LayerAttention, Visit, capture
from lsm_probe.instruments.norms import OutputMetric, output_metric, recompose
from lsm_probe.instruments.self_check import SelfCheck, error_bounds
from lsm_probe.models.devices import has_room


class RunPass(Protocol):
    """The interface of a backend: a function that runs one pass of an LLM and shows its attention layer by layer."""

    def __call__(self, inputs: Tensor, mask: Tensor, rows: Tensor, row_mask: Tensor, visit: Visit, /) -> list[Tensor]:
        """Runs the LLM and shows every layer to `visit`, in order.

        Args:
            inputs: embedded prompts and responses, `[batch, tokens, d]`, right-padded.
            mask: `[batch, tokens]`, 1 for real tokens.
            rows: query positions to measure, `[batch, rows]`, on the CPU.
            row_mask: `[batch, rows]`, on the CPU, False for padding; a padded row must still be a valid position.
            visit: shown a [`LayerAttention`] for each layer.

        Returns:
            The self-check's relative errors, `[layers, rows]` for each sample: the difference between the output
            computed from alpha, v and W_O and the attention output that the same library reported.

        Raises:
            InputError: an error exceeds [`error_bounds`].
        """


def twin(llm: PreTrainedModel, library: str) -> PreTrainedModel:
    """A second model with the same weights, which a library may modify.

    Modules and configuration are copies; parameters and buffers are the same tensors. So it needs no extra memory, and
    the LLM keeps its own modules and attention. Both libraries need eager attention to see probabilities.

    Raises:
        InputError: the model is more than a text LLM.
    """
    if llm.config.sub_configs:
        raise InputError(
            f"{type(llm).__name__} has more parts than a causal LM, and {library} can only be used with text LLMs: "
            "use the native backend"
        )
    copied = copy.deepcopy(llm, {id(tensor): tensor for tensor in (*llm.parameters(), *llm.buffers())})
    copied.set_attn_implementation("eager")
    return copied


def missing(library: str, error: ImportError) -> InputError:
    """The error for a library that cannot be imported."""
    return InputError(f"{library} cannot be imported ({error}): {install_command('interop')}")


@torch.no_grad()
def try_out(run_pass: RunPass, llm: PreTrainedModel, library: str) -> None:
    """Runs a pass over a few tokens, so that an unsupported model is refused before the measurement begins.

    Our own capture runs first. If attention is more than alpha v W_O added to the residual stream (gates, sinks, a norm
    after it), the norms are not defined in any library.

    Raises:
        InputError: our own capture or the library cannot measure the model.
    """
    tokens = torch.arange(4, device=llm.device)[None]
    inputs, mask, rows = llm.get_input_embeddings()(tokens), torch.ones_like(tokens), torch.arange(1, 4)[None]
    try:
        with capture(llm) as captured, captured.at_rows(rows, rows > 0):
            llm(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
        run_pass(inputs, mask, rows, rows > 0, lambda layer: None)
    except SampleFault:
        pass  # this says only something about these tokens
    except InputError:
        raise
    except Exception as error:  # other libraries raise any exception for a model they do not support
        raise InputError(f"{library} cannot read the attention of {type(llm).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The message of an error, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class CheckedLayers:
    """The layers of one pass as a library returns them: each is checked and passed to the visitor.

    Args:
        library: its name, for errors.
        rows, row_mask, visit: as in [`RunPass`].
        metrics: [`output_metric`] by layer, reused in later passes.
    """

    def __init__(self, library: str, rows: Tensor, row_mask: Tensor, visit: Visit, metrics: dict[int, OutputMetric]):
        self.library, self.visit, self.metrics = library, visit, metrics
        self._rows_on = cache(rows.to)
        self._check = SelfCheck(row_mask)

    def show(
        self, layer: int, pattern: Tensor, value: Tensor, w_o: Tensor, bias: Tensor | None, output: Tensor
    ) -> None:
        """Takes a layer's activations from the library; layers must come in order.

        Args:
            layer: index of the layer.
            pattern: attention probabilities, `[batch, heads, queries, keys]`.
            value: `[batch, kv_heads, keys, head_dim]`.
            w_o: output projection, `[heads, head_dim, d]`, one for each query head.
            bias: output bias `[d]`, or None.
            output: the output of the attention, `[batch, queries, d]`.
        """
        rows = self._rows_on(output.device)
        heads, keys = pattern.shape[1], pattern.shape[3]
        alpha = pattern.gather(2, rows[:, None, :, None].expand(-1, heads, -1, keys))
        alpha = alpha.to(torch.promote_types(alpha.dtype, torch.float32))
        actual = output.gather(1, rows[:, :, None].expand(-1, -1, output.shape[-1]))
        expected = recompose(alpha, value, w_o, bias)
        place = f"attention of layer {layer} cannot be measured through {self.library}"
        self._check.add(place, expected, actual, error_bounds(output.dtype))
        metric = self.metrics.get(layer)
        if metric is None:
            metric = output_metric(w_o, value.shape[1])
            if has_room(w_o.device):
                self.metrics[layer] = metric
        self.visit(LayerAttention(layer, alpha, value, metric))

    def errors_by_sample(self) -> list[Tensor]:
        """The self-check's relative errors: `[layers, rows]` for each sample.

        Raises:
            InputError: alpha, v and W_O do not reproduce the output of a layer.
        """
        return [e[:, m] for e, m in zip(self._check.judge().transpose(0, 1), self._check.row_mask, strict=True)]
