"""The shapes of the presets' models, so that a run can be planned without network and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from lsm_probe.errors import InputError
from lsm_probe.models import LsmConfig
from lsm_probe.models.building import BUILTIN_LSMS, UNTRAINED
from lsm_probe.models.builtin_arms import read_training
from lsm_probe.models.checkpoint_names import require_folder


def _whisper(width: int, layers: int, vocab_size: int = 51865, num_mel_bins: int = 80) -> dict[str, Any]:
    """A Whisper: heads are 64 wide, feed-forward layers four times the width, decoder like encoder."""
    sizes = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", layers), ("attention_heads", width // 64), ("ffn_dim", 4 * width))
    }
    return {"model_type": "whisper", "d_model": width, "vocab_size": vocab_size, "num_mel_bins": num_mel_bins, **sizes}


def _llama(width: int, layers: int, heads: int, key_value_heads: int, mlp: int, vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab_size,
    }


_LLAMA_2_7B = _llama(4096, 32, 32, 32, 11008, 32000)
_LLAMA_3_8B = _llama(4096, 32, 32, 8, 14336, 128256)

# What decides the number of parameters, from the published config.json of each; not what decides results (positions,
# special tokens): never load weights into these.
_SHAPES: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-7b-v1.5": _LLAMA_2_7B,
    "meta-llama/Llama-2-7b-hf": _LLAMA_2_7B,
    "LinkSoul/Chinese-Llama-2-7b": _LLAMA_2_7B,  # its config.json was not available; its training code adds no tokens
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_8B,
    "meta-llama/Llama-3.2-1B-Instruct": _llama(2048, 16, 32, 8, 8192, 128256) | {"tie_word_embeddings": True},
    "builtin:llm": _llama(576, 30, 9, 3, 1536, 49152) | {"tie_word_embeddings": True},
    "openai/whisper-tiny": _whisper(384, 4),
    "openai/whisper-tiny.en": _whisper(384, 4, vocab_size=51864),
    "builtin:encoder": _whisper(384, 4, vocab_size=51864),
    "openai/whisper-small": _whisper(768, 12),
    "openai/whisper-medium": _whisper(1024, 24),
    "openai/whisper-large-v2": _whisper(1280, 32),
    "openai/whisper-large-v3": _whisper(1280, 32, vocab_size=51866, num_mel_bins=128),
}


def model_config(name: str) -> PreTrainedConfig:
    """The configuration of a model that is not loaded.

    Args:
        name: a folder, whose `config.json` is read; a built-in model or a hub name from a preset, whose shape is known;
            or another hub name, whose `config.json` comes from the hub.

    Raises:
        InputError: there is no such model, or its configuration cannot be read.
    """
    if name in _SHAPES and not Path(name).is_dir():  # a folder takes precedence, as in transformers
        shape = dict(_SHAPES[name])
        return CONFIG_MAPPING[shape.pop("model_type")](**shape)
    if name in BUILTIN_LSMS:
        return _builtin_lsm(name)
    require_folder(name)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{name}: its configuration cannot be read ({reason}); give the model's folder") from None


def _builtin_lsm(name: str) -> LsmConfig:
    encoder, llm = model_config("builtin:encoder"), model_config("builtin:llm")
    if name == UNTRAINED:
        return LsmConfig(audio_config=encoder, text_config=llm)
    training = read_training(name.removeprefix("builtin:"))
    return LsmConfig(
        audio_config=encoder,
        projector_config=training.projector,
        text_config=llm,
        encoder_context=training.encoder_context,
    )
