"""LLaMA-Omni (arXiv 2409.06666): Whisper, five states stacked per token, Llama 3; and LLaMA-Omni 2 (2505.02625).

Only their text responses are measured. The part that turns text into speech (`speech_generator`) does not affect them.

LLaMA-Omni 2 has the same connector, and Qwen2.5 as its LLM. Its importer follows the original source code; its numbers
were not compared with those of the original.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config, Qwen2Tokenizer, WhisperConfig, WhisperFeatureExtractor

from lsm_probe.assets.whisper import openai_name
from lsm_probe.errors import InputError
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.published.comparison import is_same_part
from lsm_probe.models.published.parts import Part, check_width, whisper_part
from lsm_probe.models.published.release import ROTARY, Release, Rule, common_size, rename
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System, eos_token_ids

_ENCODER = r"model\.speech_encoder\."
_PROJECTOR = r"model\.speech_projector\."
_HIDDEN = {_PROJECTOR + r"linear1\.(weight|bias)": 0, _PROJECTOR + r"linear2\.weight": 1}
_RULES: list[Rule] = [
    ROTARY,
    (_PROJECTOR + r"linear([12])\.(.*)", r"multi_modal_projector.linear_\1.\2"),
    (r"speech_generator\..*", None),
    (r"(lm_head\..*|model\.(?:embed_tokens|layers|norm)\..*)", r"language_model.\1"),
]
_WIDTH_OF_HEADS = 64
"""Width of an attention head in every Whisper that OpenAI published."""


def _read_llama_omni(release: Release, parts: Parts) -> Reading:
    # The original code replaces the encoder weights in the folder by those in the file. In the release both are equal.
    # So without the file, the weights in the folder are read, and a file with other weights is refused.
    named = release.config.get("speech_encoder")
    what = f"Whisper large-v3 in OpenAI's file, which its config.json calls {named}, or as a folder of transformers"
    is_held = any(re.match(_ENCODER, name) for name in release.tensors)
    llm = release.llm_config(LlamaConfig)
    if is_held and parts.find("encoder", release, named) is None:
        return _reading(release, llm, "llama_omni", _encoder_config(release, f"give --encoder FILE, {what}"))
    place = parts.need("encoder", release, what, default=named)
    encoder = whisper_part(place)
    reading = _reading(release, llm, "llama_omni", encoder[0].config, encoder)
    read = common_size(release.tensors, {_PROJECTOR + r"linear1\.weight": 1}, release.folder)
    width, rest = divmod(read, reading.config.projector_config.window)
    if not rest:  # otherwise a tensor is damaged and is refused by its name later
        check_width("encoder", place, encoder[0].config.d_model, width)
    return reading


def _read_llama_omni2(release: Release, parts: Parts) -> Reading:
    encoder_config = _encoder_config(release, "it cannot be read")
    return _reading(release, release.llm_config(Qwen2Config), "llama_omni2", encoder_config)


def _reading(
    release: Release,
    llm: LlamaConfig | Qwen2Config,
    template: str,
    encoder_config: WhisperConfig,
    encoder: tuple[Part, WhisperFeatureExtractor] | None = None,
) -> Reading:
    """Reads either system. `encoder` replaces the encoder in the release's folder, and brings its feature extractor."""
    for setting, only in (("speech_encoder_type", "whisper"), ("speech_projector_type", "linear")):
        if only not in str(value := release.config.get(setting, only)).lower():
            raise InputError(f"{release.folder / 'config.json'} has {setting} {value!r}: only {only!r} can be read")
    config = LsmConfig(
        audio_config=encoder_config,
        projector_config=LsmProjectorConfig(
            connector="frame_stack",
            window=release.setting("speech_encoder_ds_rate"),
            hidden_size=common_size(release.tensors, _HIDDEN, release.folder),
            drop_partial_window=True,
        ),
        text_config=llm,
        encoder_context="padded",
    )

    tokenizer = release.tokenizer(Qwen2Tokenizer if isinstance(llm, Qwen2Config) else None)

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        own = rename(release.tensors, [(_ENCODER + "(.*)", _encoder_name), *_RULES], release.folder)
        if encoder is None:
            return own
        given = encoder[0].tensors(dtype)
        if not is_same_part({name: held for name, held in own.items() if name.startswith("audio_tower.")}, given):
            raise InputError(
                f"{release.folder} holds the encoder that it was trained with, and that of --encoder, or of "
                "speech_encoder in its config.json, has other weights: give the same encoder, or remove one of the two"
            )
        return {**own, **given}

    return Reading(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        feature_extractor=encoder[1] if encoder else WhisperFeatureExtractor(encoder_config.num_mel_bins),
        template=template,
        eos_token_ids=eos_token_ids(release, release.generation, llm, tokenizer),
        parts={"encoder": encoder[0].identity} if encoder else {},
    )


def _encoder_config(release: Release, remedy: str) -> WhisperConfig:
    """Configuration of the encoder in the release's folder; its number of heads is derived from its width.

    Raises:
        InputError: no OpenAI Whisper has this width; the message ends with `remedy`.
    """
    width = common_size(release.tensors, {_ENCODER + r"blocks\.\d+\.(attn|mlp)_ln\.(weight|bias)": 0}, release.folder)
    if width % _WIDTH_OF_HEADS:
        raise InputError(
            f"{release.folder} holds an encoder of width {width}, which is not a multiple of {_WIDTH_OF_HEADS}, "
            "so that "
            f"its number of attention heads is not known: {remedy}"
        )
    layers = {match[1] for name in release.tensors if (match := re.match(_ENCODER + r"blocks\.(\d+)\.", name))}
    mel_bins = common_size(release.tensors, {_ENCODER + r"conv1\.weight": 1}, release.folder)
    return WhisperConfig(
        d_model=width,
        encoder_layers=len(layers),
        encoder_attention_heads=width // _WIDTH_OF_HEADS,
        encoder_ffn_dim=4 * width,
        # Whisper has 80 or 128: a damaged tensor is refused by its name later.
        num_mel_bins=80 if mel_bins == 80 else 128,
    )


def _encoder_name(match: re.Match[str]) -> str:
    return "audio_tower." + openai_name(f"encoder.{match[1]}").removeprefix("encoder.")


def _recognises_llama_omni(release: Release) -> bool:
    return release.config.get("model_type") in ("omni_speech_llama", "omni_speech2s_llama")


def _recognises_llama_omni2(release: Release) -> bool:
    return release.config.get("model_type") in ("omni2_speech_qwen2", "omni2_speech2s_qwen2")


SYSTEMS.register("llama_omni")(System("LLaMA-Omni", _recognises_llama_omni, _read_llama_omni, ("encoder",)))
SYSTEMS.register("llama_omni2")(System("LLaMA-Omni 2", _recognises_llama_omni2, _read_llama_omni2))
