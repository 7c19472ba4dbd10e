"""LLMs with the dimensions of published ones and random weights; time and memory are those of trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

SHAPES: dict[str, dict[str, Any]] = {
    "vicuna-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2},
}


def save_shape(name: str, layers: int, vocabulary: int | None, tokenizer: Path, folder: Path) -> None:
    """Writes the configuration of a shape and a tokenizer, but no weights.

    Args:
        name: one of `SHAPES`.
        layers: number of decoder layers.
        vocabulary: number of token embeddings; None for the tokenizer's. With a small one, the layers
            take almost all of the time.
        tokenizer: folder of a model whose tokenizer to take.
        folder: where to write.
    """
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary or len(loaded),
        num_hidden_layers=layers,
        max_position_embeddings=8192,
        bos_token_id=loaded.bos_token_id,
        eos_token_id=loaded.eos_token_id,
        pad_token_id=None if vocabulary else loaded.pad_token_id,
        tie_word_embeddings=False,
        **SHAPES[name],
    ).save_pretrained(folder)
    loaded.save_pretrained(folder)


def has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def draw_weights(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model of a folder without weights. The same float32 weights are drawn for every dtype of a device."""
    config = LlamaConfig.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )
    return model.to(dtype).eval()  # type: ignore[arg-type]
