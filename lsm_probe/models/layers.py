"""Locates the decoder layers of an LLM."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lsm_probe.errors import InputError


def find_decoder(llm: Any) -> PreTrainedModel:
    """The module with the decoder layers; in an audio LLM, the part that reads the embedded speech and text."""
    decoder = llm.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else llm.base_model  # ModernBERT's `decoder` is its head


def find_speech_part(decoder: nn.Module) -> nn.Module | None:
    """The encoder inside a decoder that inserts speech into the embedded text, as in Phi-4-multimodal; or None."""
    return getattr(decoder, "embed_tokens_extend", None)


def layers_prefix(llm: Any) -> str:
    """The common prefix of the parameter names of all decoder layers, such as `model.layers.`.

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
        name: of the parameter; it may start with a wrapper's prefix.
        prefix: from [`layers_prefix`].
    """
    _, found, rest = name.partition(prefix)
    number, _, within = rest.partition(".")
    return (int(number), within) if found and number.isdecimal() else (None, name)
