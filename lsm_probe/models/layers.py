"""Where an LLM keeps its decoder layers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lsm_probe.errors import InputError


def find_decoder(llm: Any) -> PreTrainedModel:
    """What holds the decoder layers: of an audio LLM, the part that reads its encoder's and its tokenizer's work."""
    decoder = llm.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else llm.base_model  # ModernBERT's `decoder` is its head


def find_speech_part(decoder: nn.Module) -> nn.Module | None:
    """The encoder within a decoder, which puts speech among the embedded text; Phi-4-multimodal has one."""
    return getattr(decoder, "embed_tokens_extend", None)


def layers_prefix(llm: Any) -> str:
    """What the names of the parameters of all decoder layers begin with, such as `model.layers.`; a number follows.

    Raises:
        InputError: the model has no such list.
    """
    expected = llm.config.get_text_config().num_hidden_layers
    inside = set(find_decoder(llm).modules())
    for name, module in llm.named_modules():
        if module in inside and isinstance(module, nn.ModuleList) and len(module) == expected:
            return f"{name}."
    raise InputError(f"{type(llm).__name__} has no list of {expected} layers: it cannot be measured by layer")


def layer_of(name: str, prefix: str) -> tuple[int | None, str]:
    """The layer of a parameter and its name within the layer; None and the whole name outside of the layers.

    Args:
        name: of the parameter; a wrapper's prefix may stand before it.
        prefix: of [`layers_prefix`].
    """
    _, found, rest = name.partition(prefix)
    number, _, within = rest.partition(".")
    return (int(number), within) if found and number.isdecimal() else (None, name)
