"""Explains why a model of a type that transformers does not know cannot be loaded, also for well-known speech LLMs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from lsm_probe.errors import InputError

_REMOTE = "its code is not part of transformers, and code that comes with a checkpoint is not run"
_DISCRETE = (
    "its speech is a sequence of discrete tokens of the vocabulary. No encoder hands embeddings to its LLM, and "
    f"{_REMOTE}"
)
_KINDS = {
    r"mini.?omni": "Mini-Omni: at each position it averages several streams of tokens, so that speech and text have no "
    "positions of their own",
    r"moshi": "Moshi: it adds its streams of speech and text at each position, so that they have no positions of their "
    "own",
    r"kimi.?audio|moonshotkimia": "Kimi-Audio: it adds speech to the embeddings of the audio tokens at the same "
    "positions, and runs code that is not part of transformers",
    r"wavllm": "WavLLM: its LLM reads the prompt once before, to scale the outputs of its LoRA, so that its weights "
    "depend on the prompt",
    r"glm.?4.?voice": f"GLM-4-Voice: {_DISCRETE}",
    r"step.?audio.?2|stepaudio2": f"Step-Audio 2: {_REMOTE}",
    r"step.?audio|step1": f"Step-Audio: {_DISCRETE}",
    r"qwen.?audio": f"Qwen-Audio (the first one): {_REMOTE}. Qwen2-Audio can be measured",
    r"minicpm.?o": f"MiniCPM-o: {_REMOTE}",
    r"phi4mm": "Phi-4-multimodal in the form of its own code, which is not run. Give a copy in the form of "
    "transformers (model_type phi4_multimodal) as --base, and its folder speech-lora as --ckpt",
}
"""Regular expression for the model type or class in `config.json` -> description."""
_GLM_4_VOICE_TOKENS = 168_960
"""Vocabulary size of GLM-4-Voice, which distinguishes it from the text LLM of the same class."""


def check_known(name: str | Path) -> None:
    """Refuses a checkpoint whose `config.json` names a type that the installed transformers does not have.

    Args:
        name: folder or hub name. It is left to transformers to say what else is wrong with `config.json`.

    Raises:
        InputError: transformers does not have the type, or the file names none.
    """
    try:
        settings, _ = PreTrainedConfig.get_config_dict(str(name), trust_remote_code=False)
    except (OSError, ValueError, TypeError, RecursionError):
        return
    kind, classes = settings.get("model_type"), settings.get("architectures") or []
    if kind in CONFIG_MAPPING:
        return
    if (known := _known_kind(settings)) is not None:
        raise InputError(f"{name} cannot be measured. It is {known}")
    if kind is None:
        raise InputError(
            f"{name} cannot be loaded: its config.json names no model_type, so its type is not known. "
            "Add the config.json that belongs to the weights"
        )
    named = f" ({', '.join(map(str, classes))})" if classes else ""
    code = "; the code that comes with it is not run" if "auto_map" in settings else ""
    raise InputError(
        f"{name} cannot be loaded: it is a {kind!r} model{named}, which transformers {transformers.__version__} does "
        f"not have{code}. Give an LSM of this package, or a text LLM or audio LLM of a type that transformers has"
    )


def check_litgpt(folder: Path) -> None:
    """Refuses Mini-Omni's release, which has no `config.json`.

    Raises:
        InputError: the folder holds one.
    """
    settings = folder / "model_config.yaml"
    if settings.is_file() and "whisper_adapter_dim" in settings.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{folder} cannot be measured. It is {_KINDS['mini.?omni']}")


def _known_kind(settings: Mapping[str, Any]) -> str | None:
    names = [settings.get("model_type"), *(settings.get("architectures") or [])]
    if settings.get("model_type") == "chatglm" and settings.get("padded_vocab_size") == _GLM_4_VOICE_TOKENS:
        names = ["glm-4-voice"]
    if settings.get("model_type") == "qwen" and "audio" in settings:
        names = ["qwen-audio"]
    found = (text for pattern, text in _KINDS.items() for name in names if re.search(pattern, str(name).lower()))
    return next(found, None)
