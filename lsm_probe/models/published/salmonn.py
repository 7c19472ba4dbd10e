"""SALMONN (arXiv 2310.13289): Whisper and BEATs, a Q-Former over windows, Vicuna with LoRA.

A release is one `.pth` file with the trained weights; it does not contain Whisper, BEATs and Vicuna. Speech longer than
30 s is split into pieces with the same number of speech tokens each; the original code cuts it off at 30 s.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lsm_probe.errors import InputError
from lsm_probe.formats import load_json, load_yaml
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.llm_tokenizers import read_tokenizer
from lsm_probe.models.published.comparison import is_same_part
from lsm_probe.models.published.lora import merge_lora
from lsm_probe.models.published.parts import Part, beats_part, check_width, llm_part, whisper_part
from lsm_probe.models.published.qformer import QFORMER_RULES, qformer_sizes
from lsm_probe.models.published.release import (
    ROTARY,
    Release,
    Rule,
    common_size,
    read_unpickled,
    rename,
)
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System, eos_token_ids
from lsm_probe.models.templates import PromptTemplate
from lsm_probe.models.templates.layout import parse_template
from lsm_probe.models.tensors import listed

_NAMES = ("speech_Qformer.", "speech_llama_proj.")
"""Prefixes of tensor names by which a `.pth` file is recognised."""
_SPEECH_NORM, _BEATS_NORM, _LAST = (
    {rf"{module}\.(weight|bias)": 0} for module in ("ln_speech", "ln_audio", "speech_llama_proj")
)
"""Tensors whose first dimension is the width of Whisper, of BEATs and of the LLM."""
_PROMPT = "USER: {}\nASSISTANT:"
_SETTINGS = ("model_settings.json", "decode_config.yaml")
"""Names of settings files, in the release's folder or its parent folder."""
_FIXED = {"use_speech_Qformer": True, "window_level_Qformer": True}
"""Settings for which only one value is implemented."""
_ALPHA = 32
"""Default `lora_alpha` of the original code, used where the settings do not name it."""
_LORA = r"llama_model\.base_model\.model\.(model\.layers\.\d+\.self_attn\.[qv]_proj)\.lora_([AB])(?:\.default)?\.weight"
_RULES: list[Rule] = [ROTARY, *QFORMER_RULES, (_LORA, r"language_model.\1.lora_\2")]
_BEATS_RULES: list[Rule] = [
    (r"ln_audio\.(.*)", r"audio_tower.layer_norm.\1"),
    # All layers share it; the original saves a copy for each layer except the first.
    (
        r"beats\.encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight",
        "audio_tower.beats.encoder.layers.0.attention.rel_attn_embed.weight",
    ),
]
_WHISPER = "the Whisper that it was trained with, openai/whisper-large-v2 in the releases"
_VICUNA = (
    "the Vicuna that it was trained with, lmsys/vicuna-13b-v1.1 for salmonn_v1.pth and lmsys/vicuna-7b-v1.5 for "
    "salmonn_7b_v0.pth"
)
_BEATS = (
    "the BEATs that it was trained with, BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt of microsoft/unilm in the "
    "releases"
)


def _recognises(release: Release) -> bool:
    return bool(release.pickled_files("*.pth", *_NAMES))


def _file_of(release: Release) -> Release:
    """The release as a single file, also where its folder was given.

    Raises:
        InputError: the folder holds several checkpoints.
    """
    files = release.pickled_files("*.pth", *_NAMES)
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise InputError(f"{release.folder} holds several checkpoints ({names}): give the path of one of them")
    return Release(release.folder, files[0])


def _needs(release: Release) -> tuple[str, ...]:
    return ("encoder", "llm", "beats") if _has_beats(_file_of(release)) else ("encoder", "llm")


def _read(release: Release, parts: Parts) -> Reading:
    release = _file_of(release)
    place, held, settings = release.place, release.tensors, _read_settings(release)
    encoder_place = parts.need("encoder", release, _WHISPER, settings.path("whisper_path"))
    llm_place = parts.need("llm", release, _VICUNA, settings.path("llama_path"))
    whisper, feature_extractor = whisper_part(encoder_place)
    llm, beats = llm_part(llm_place), _beats(release, parts, settings)
    encoder_dim, llm_dim = whisper.config.d_model, llm.config.get_text_config().hidden_size
    check_width("encoder", encoder_place, encoder_dim, common_size(held, _SPEECH_NORM, place))
    check_width("llm", llm_place, llm_dim, common_size(held, _LAST, place))
    config = LsmConfig(
        audio_config=whisper.config,
        projector_config=LsmProjectorConfig(
            window=settings.window(whisper.config.max_source_positions),
            drop_partial_window=True,
            layer_norm_dim=encoder_dim if beats else None,
            **_sizes(held, place),
        ),
        text_config=llm.config,
        beats_config=beats.config if beats else None,
        encoder_context="padded",
    )

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        renamed = rename(held, [*_RULES, *(_BEATS_RULES if beats else [])], place)
        lora = {name: renamed.pop(name) for name in list(renamed) if ".lora_" in name}
        tower = whisper.tensors(dtype)
        if beats:
            tower = {name.replace("audio_tower", "audio_tower.encoder", 1): tensor for name, tensor in tower.items()}
            tower |= beats.tensors(dtype)
            _check_same_beats(tower, renamed, place)
        return {**tower, **_llm_tensors(llm, lora, settings, dtype, place), **renamed}

    tokenizer = read_tokenizer(llm_place)
    identities = {"encoder": whisper.identity, "llm": llm.identity}
    return Reading(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        feature_extractor=feature_extractor,
        template=settings.template(),
        eos_token_ids=eos_token_ids(release, llm.config, tokenizer),
        parts=identities | {"beats": beats.identity} if beats else identities,
        settings={"lora_alpha": settings.lora_alpha} if _has_lora(held) else {},
        release=release,
    )


def _has_lora(held: Mapping[str, Tensor]) -> bool:
    return any(".lora_" in name for name in held)


def _sizes(held: Mapping[str, Tensor], place: Path) -> dict[str, Any]:
    """The sizes of the Q-Former, as settings of an `LsmProjectorConfig`."""
    layers = {match[1] for name in held if (match := re.match(r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.", name))}
    queries = common_size(held, {"speech_query_tokens": 1}, place)
    return {"num_queries": queries, "num_hidden_layers": len(layers)} | qformer_sizes(held, place)


def _has_beats(release: Release) -> bool:
    """Whether a checkpoint was trained with BEATs: if so, its Q-Former reads states wider than those of Whisper."""
    cross = r"speech_Qformer\.bert\.encoder\.layer\.\d+\.crossattention\.self\.(key|value)\.weight"
    width = common_size(release.tensors, {cross: 1}, release.place)
    return width != common_size(release.tensors, _SPEECH_NORM, release.place)


def _beats(release: Release, parts: Parts, settings: _Settings) -> Part | None:
    if not _has_beats(release):
        return None
    place = parts.need("beats", release, _BEATS, settings.path("beats_path"))
    beats = beats_part(place)
    check_width("beats", place, beats.config.hidden_size, common_size(release.tensors, _BEATS_NORM, release.place))
    return beats


def _check_same_beats(tower: Mapping[str, Tensor], renamed: Mapping[str, Tensor], place: Path) -> None:
    """Compares the one BEATs tensor in the release, which was not trained, with the same tensor of the given BEATs."""
    if not is_same_part({name: renamed[name] for name in tower.keys() & renamed.keys()}, tower):
        raise InputError(f"{place} was trained with another BEATs than that of --beats: give {_BEATS}")


@dataclass(frozen=True)
class _Settings:
    """The settings of the original: the `model:` part of its `decode_config.yaml`.

    Attributes:
        values: values by name; missing settings have the defaults of the original code.
        where: the file that they were read from, for messages.
    """

    values: Mapping[str, Any]
    where: Path

    def path(self, name: str) -> object:
        return self.values.get(name)

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
            raise InputError(f"{self.where}: {name} is {value!r}: give a number above 0")
        return float(value)

    @property
    def lora_alpha(self) -> float:
        return self.number("lora_alpha", _ALPHA)

    def window(self, states: int) -> int:
        """Number of encoder states in a window.

        Args:
            states: number of states that the encoder makes from 30 s.
        """
        seconds = self.number("second_per_window", 0.333333)
        if (stride := self.number("second_stride", seconds)) != seconds:
            raise InputError(
                f"{self.where}: windows of {seconds} s every {stride} s overlap or leave gaps, which no connector of "
                "this package supports: this checkpoint cannot be read"
            )
        return max(1, round(states * seconds / 30))

    def template(self) -> str | PromptTemplate:
        """The prompt template: the built-in `salmonn`, or one with other words around speech and instruction."""
        prompt = self.values.get("prompt_template", _PROMPT)
        if prompt == _PROMPT:
            return "salmonn"
        if not isinstance(prompt, str) or prompt.count("{}") != 1:
            raise InputError(f"{self.where}: prompt_template is {prompt!r}: give a text that holds {{}} once")
        before, after = prompt.split("{}")
        words = [{"template": f"{before}<Speech>"}, "source", {"template": "</Speech> "}, "instruction"]
        layout = {"split_at_source": True, "prompt": [*words, {"template": after}]}
        return parse_template("salmonn", yaml.safe_dump(layout), str(self.where))


def _read_settings(release: Release) -> _Settings:
    """The settings file beside a release, or else the settings that a training run wrote into its `.pth`."""
    folders = (release.folder, release.folder.resolve().parent)
    path = next((path for folder in folders for name in _SETTINGS if (path := folder / name).is_file()), None)
    if path is None:
        path, content = release.files[0], read_unpickled(release.files[0]).get("config")
    else:
        try:
            content = (load_json if path.suffix == ".json" else load_yaml)(path.read_bytes())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read: get it again from the original checkpoint") from error
    values = content.get("model", content) if isinstance(content, Mapping) else {}
    settings = _Settings(values if isinstance(values, Mapping) else {}, path)
    for name, value in _FIXED.items():
        if settings.values.get(name, value) != value:
            raise InputError(
                f"{path}: {name} is {settings.values[name]!r}: only checkpoints with {value!r} can be read"
            )
    return settings


def _llm_tensors(
    llm: Part, lora: Mapping[str, Tensor], settings: _Settings, dtype: torch.dtype, place: Path
) -> Mapping[str, Tensor]:
    """The LLM's weights with LoRA merged into them."""
    # The original rounds the LLM to float16 when it loads it.
    weights = llm.tensors(torch.float16)
    if not lora and settings.values.get("lora") is False:
        return weights
    expected = {
        f"language_model.model.layers.{layer}.self_attn.{kind}_proj.lora_{half}"
        for layer in range(llm.config.num_hidden_layers)
        for kind in "qv"
        for half in "AB"
    }
    if lacking := expected - lora.keys():
        raise InputError(
            f"{place} lacks {listed(lacking)}: give the LLM that it was trained with, and an undamaged copy of "
            "the release"
        )
    if "lora_alpha" not in settings.values:
        warnings.warn(
            f"{place}: its settings do not name lora_alpha; {_ALPHA} is used, the default of its code. If it was "
            "trained "
            f"with another, write lora_alpha into {place.parent / 'decode_config.yaml'}",
            stacklevel=2,
        )
    return merge_lora(weights, lora, settings.lora_alpha, dtype, place)


SYSTEMS.register("salmonn")(System("SALMONN", _recognises, _read, _needs))
