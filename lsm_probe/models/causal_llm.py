"""Causal text LLMs: recognising and loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from lsm_probe.errors import InputError
from lsm_probe.models.audio_llm import check_reads_embeddings
from lsm_probe.models.devices import input_device
from lsm_probe.models.pretrained import pretrained, pretrained_model


def load_causal_llm(label: str, name: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a causal text LLM.

    Args:
        label: how error messages name it.
        name: folder or hub name.
        dtype: of all weights.

    Raises:
        InputError: it cannot be loaded, is not a causal LM, or needs more than embeddings as its input.
    """
    config = pretrained(AutoConfig, name)
    if not is_causal(config):
        raise InputError(_refusal(label, config))
    model = pretrained_model(AutoModelForCausalLM, name, dtype)
    check_causal(model, label)
    return model


def check_causal(model: Any, label: str) -> None:
    """Checks that a model is a causal LM that accepts embeddings.

    Raises:
        InputError: its attention is not causal, or it needs more than embeddings as its input.
    """
    # transformers also lists models such as BERT as causal LMs; no field of their configurations marks them reliably.
    ids = torch.tensor([[1, 1], [1, 2]], device=input_device(model))
    with torch.no_grad():
        first = model(input_ids=ids, use_cache=False).logits[:, 0].float()
    if (first[0] - first[1]).abs().max() > 0.01 * first.abs().max():
        raise InputError(f"{_refusal(label, model.config)}: its attention is not causal")
    check_reads_embeddings(model.eval(), label)


def _refusal(label: str, config: PreTrainedConfig) -> str:
    return (
        f"{label} is a {config.model_type!r} model, which is neither an LSM of this package, an audio LLM with a "
        "placeholder "
        "for its speech, nor a causal text LLM"
    )


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration is a causal LM; transformers lists Whisper's decoder as one too."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
