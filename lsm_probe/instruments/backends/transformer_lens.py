"""The attention probe with TransformerLens: alpha, v and W_O from a TransformerBridge."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from lsm_probe.errors import InputError
from lsm_probe.instruments.backends.foreign import CheckedLayers, first_line, missing, try_out, twin
from lsm_probe.instruments.capture import Visit
from lsm_probe.instruments.norms import OutputMetric

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LIBRARY = "TransformerLens"


def bridge_over(llm: PreTrainedModel) -> TransformerBridge:
    """A TransformerBridge with the weights of a causal LM; it downloads nothing, and the LLM itself does not change.

    Raises:
        InputError: if TransformerLens is not installed, or has no adapter for the model.
    """
    try:
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError as error:
        raise missing(LIBRARY, error) from error
    copied = twin(llm, LIBRARY)
    try:
        # Not `boot_transformers`, which looks for the tokenizer on the hub and may install packages.
        return build_bridge_from_module(copied, type(llm).__name__, hf_config=copied.config)
    except Exception as error:  # its adapters raise many kinds of exceptions
        raise InputError(f"{LIBRARY} cannot take {type(llm).__name__}: {first_line(error)}") from error


class TransformerLensPass:
    """A [`RunPass`] that reads `hook_pattern`, `hook_v` and `W_O`, checked against the attention's `hook_out`.

    Args:
        llm: a causal LM in evaluation mode.
    """

    def __init__(self, llm: PreTrainedModel):
        self.bridge = bridge_over(llm)
        self.metrics: dict[int, OutputMetric] = {}
        try_out(self, llm, LIBRARY)

    def __call__(self, inputs: Tensor, mask: Tensor, rows: Tensor, row_mask: Tensor, visit: Visit) -> list[Tensor]:
        checked = CheckedLayers(LIBRARY, rows, row_mask, visit, self.metrics)
        seen: dict[str, Tensor] = {}  # activations of the running layer only

        def see(part: str, tensor: Tensor, hook: Any) -> None:
            seen[part] = tensor
            if len(seen) == 3:  # the order differs between adapters
                layer = int(hook.name.split(".")[1])
                attention: Any = self.bridge.blocks[layer].attn
                value = seen["hook_v"].transpose(1, 2)
                checked.show(layer, seen["hook_pattern"], value, attention.W_O, attention.b_O, seen["hook_out"])
                seen.clear()

        hooks: list[Any] = [
            (f"blocks.{layer}.attn.{part}", partial(see, part))
            for layer in range(len(self.bridge.blocks))
            for part in ("hook_v", "hook_pattern", "hook_out")
        ]
        self.bridge.run_with_hooks(
            inputs, attention_mask=mask, use_cache=False, logits_to_keep=1, return_type=None, fwd_hooks=hooks
        )
        return checked.errors_by_sample()
