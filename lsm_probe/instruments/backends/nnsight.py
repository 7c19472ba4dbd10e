"""The attention probe with nnsight: probabilities and values from a trace of the attention call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from lsm_probe.instruments.backends.foreign import CheckedLayers, missing, try_out, twin
from lsm_probe.instruments.capture import Visit, find_attention_layers
from lsm_probe.instruments.norms import OutputMetric

if TYPE_CHECKING:
    from nnsight import NNsight

LIBRARY = "nnsight"


def wrap(llm: PreTrainedModel) -> NNsight:
    """A second model with the weights of a causal LM, wrapped for tracing; the LLM itself does not change.

    Raises:
        InputError: if nnsight is not installed.
    """
    try:
        from nnsight import NNsight
    except ImportError as error:
        raise missing(LIBRARY, error) from error
    return NNsight(twin(llm, LIBRARY))


class NNsightPass:
    """A [`RunPass`] that traces the inputs and outputs of transformers' attention interface.

    nnsight does not provide W_O, so the effective W_O of the traced output projection is used.

    Args:
        llm: a causal LM in evaluation mode.
    """

    def __init__(self, llm: PreTrainedModel):
        self.model: Any = wrap(llm)
        self.layers = find_attention_layers(self.model._module)
        self.metrics: dict[int, OutputMetric] = {}
        try_out(self, llm, LIBRARY)

    def __call__(self, inputs: Tensor, mask: Tensor, rows: Tensor, row_mask: Tensor, visit: Visit) -> list[Tensor]:
        checked = CheckedLayers(LIBRARY, rows, row_mask, visit, self.metrics)
        # nnsight reads this block's source and runs it alongside the forward pass: requests must be in
        # the order in which the model computes the values.
        with self.model.trace(inputs_embeds=inputs, attention_mask=mask, use_cache=False, logits_to_keep=1):
            for layer in self.layers:
                attention = self.model.get(layer.name)
                call = attention.source.attention_interface_1  # _0 is the line that looks up the function
                _, _, _, value, *_ = call.inputs[0]
                _, pattern = call.output
                output = attention.output
                w_o, bias = layer.output_weight(pattern.shape[1], value)
                output = output[0] if isinstance(output, tuple) else output
                checked.show(layer.index, pattern, value, w_o, bias, output)
        return checked.errors_by_sample()
