"""Ultravox (fixie-ai/ultravox, v0.2 to v0.6): Whisper on the unpadded clip, stacked states through a SwiGLU, an LLM.

A release holds all parts, or all but the LLM, or neither the LLM nor Whisper; its `config.json` names missing parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, WhisperFeatureExtractor

from lsm_probe.errors import InputError
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.llm_tokenizers import read_tokenizer
from lsm_probe.models.pretrained import from_files
from lsm_probe.models.published.parts import Part, check_width, llm_part, whisper_part
from lsm_probe.models.published.release import ROTARY, Release, Rule, rename
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System, eos_token_ids

_RULES: list[Rule] = [ROTARY, (r"(audio_tower|multi_modal_projector|language_model)\.(.*)", r"\1.\2")]
_NAMED_BY = {"encoder": "audio_model_id", "llm": "text_model_id"}


def _recognises(release: Release) -> bool:
    return release.config.get("model_type") == "ultravox"


def _needs(release: Release) -> tuple[str, ...]:
    config = release.config
    has_encoder = config.get("audio_config") and release.holds("audio_tower")
    has_llm = config.get("text_config") and release.holds("language_model")
    return tuple(part for part, own in (("encoder", has_encoder), ("llm", has_llm)) if not own)


def _read(release: Release, parts: Parts) -> Reading:
    _check_settings(release)
    needs, found = _needs(release), dict[str, Part]()
    places = {part: _place(release, parts, part) for part in needs}
    extractor = None
    if "encoder" in needs:
        found["encoder"], extractor = whisper_part(places["encoder"])
    if "llm" in needs:
        found["llm"] = llm_part(places["llm"])
    config = LsmConfig(
        audio_config=found["encoder"].config if "encoder" in needs else _own_config(release, "audio_config", "whisper"),
        projector_config=_projector_config(release),
        text_config=found["llm"].config if "llm" in needs else _text_config(release),
        encoder_context="clip",
    )
    _check_widths(release, config, places)

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        # Tensors of a part in the release were trained, and replace those of the given part.
        own = rename(release.tensors, _RULES, release.folder)
        return {name: tensor for part in found.values() for name, tensor in part.tensors(dtype).items()} | own

    if not (release.folder / "preprocessor_config.json").is_file():
        extractor = extractor or WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins)
    else:
        extractor = from_files(WhisperFeatureExtractor, release.folder)
    has_tokenizer = "llm" not in needs or any(release.folder.glob("tokenizer.*"))
    tokenizer = release.tokenizer() if has_tokenizer else read_tokenizer(places["llm"])
    return Reading(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        feature_extractor=extractor,
        template="ultravox",
        eos_token_ids=eos_token_ids(release, release.generation, config.text_config, tokenizer),
        parts={name: part.identity for name, part in found.items()},
    )


def _check_settings(release: Release) -> None:
    """Refuses settings that no release has, and settings with which the original code would compute differently."""
    if (act := release.config.get("projector_act", "swiglu")) != "swiglu":
        raise InputError(f"{release.folder} has projector_act {act!r}: only 'swiglu' can be read")
    if block := release.config.get("audio_latency_block_size"):
        raise InputError(
            f"{release.folder} has audio_latency_block_size {block}: an encoder whose attention is limited to blocks "
            "cannot be read"
        )


def _place(release: Release, parts: Parts, part: str) -> str:
    named = release.config.get(_NAMED_BY[part])
    what = {"encoder": "the Whisper", "llm": "the LLM"}[part]
    return parts.need(part, release, f"{what} {named or 'that it was trained with'}", named)


def _projector_config(release: Release) -> LsmProjectorConfig:
    # Missing settings have the defaults of the original code.
    config = release.config
    if not isinstance(width := config.get("hidden_size", 4096), int):
        raise InputError(f"{release.folder / 'config.json'} has hidden_size {width!r}: it must be an integer")
    settings = {
        "connector": "swiglu_stack",
        "window": config.get("stack_factor", 8),
        "hidden_size": width // 2,  # in the release, the width before the gate
        "middle_norm": config.get("projector_ln_mid", False),
    }
    return release.part_config(LsmProjectorConfig, settings)


def _own_config(release: Release, key: str, default: str, **defaults: Any) -> PreTrainedConfig:
    settings = release.setting(key)
    kind = settings.get("model_type", default) if isinstance(settings, Mapping) else default
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING or (key == "audio_config" and kind != "whisper"):
        raise InputError(f"{release.folder / 'config.json'} has a {kind!r} model as its {key}: it cannot be read")
    made: PreTrainedConfig = release.part_config(CONFIG_MAPPING[kind], settings, **defaults)
    return made


def _text_config(release: Release) -> PreTrainedConfig:
    # Older versions of transformers do not write settings that have the default value.
    tied = {} if release.holds("language_model.lm_head") else {"tie_word_embeddings": True}
    return _own_config(release, "text_config", "llama", **tied)


def _check_widths(release: Release, config: LsmConfig, places: Mapping[str, str]) -> None:
    connector = {name: release.tensors.get(f"multi_modal_projector.{name}.weight") for name in ("ln_pre", "linear_2")}
    if "encoder" in places and (norm := connector["ln_pre"]) is not None:
        needed = len(norm) // config.projector_config.window
        check_width("encoder", places["encoder"], config.audio_config.d_model, needed)
    if "llm" in places and (linear := connector["linear_2"]) is not None:
        check_width("llm", places["llm"], config.text_config.get_text_config().hidden_size, len(linear))
    size = config.text_config.get_text_config().vocab_size
    if "llm" in places and (trained := release.config.get("vocab_size", size)) != size:
        raise InputError(
            f"--llm {places['llm']} has a vocabulary of {size}, and that of {release.folder} has {trained}: give the "
            "LLM of the release"
        )


SYSTEMS.register("ultravox")(System("Ultravox", _recognises, _read, _needs))
