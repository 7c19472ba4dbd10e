"""SLAM-LLM (X-LANCE/SLAM-LLM, arXiv 2402.08846) with Whisper and the linear projector.

A release is a `model.pt` file with the trained weights; it does not contain Whisper and the LLM. The settings of its
training run are read from the run's `.hydra/config.yaml`, in the folder of `model.pt` or its parent folder. Speech
longer than 30 s becomes several pieces; the original code cuts it off at 30 s.

The results were not compared with the original code, because we have no output of it. The layout of `model.pt`, the
connector and the prompt follow the repository's code. The computation was compared with a version in plain torch. The
published projectors are for WavLM and HuBERT, which cannot be read here. Only its width and its settings show that a
`model.pt` was trained with Whisper. Q-Former and cov1d-linear projectors are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lsm_probe.assets.whisper import openai_name
from lsm_probe.errors import InputError
from lsm_probe.formats import load_yaml
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.llm_tokenizers import read_tokenizer
from lsm_probe.models.published.lora import merge_lora
from lsm_probe.models.published.parts import check_width, llm_part, whisper_part
from lsm_probe.models.published.release import Release, Rule, rename
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System, eos_token_ids

_PROJECTOR = "encoder_projector."
_RULES: list[Rule] = [
    (r"encoder_projector\.linear([12])\.(.*)", r"multi_modal_projector.linear_\1.\2"),
    (r"llm\.base_model\.model\.(.*)\.lora_([AB])(?:\.default)?\.weight", r"language_model.\1.lora_\2"),
    (r"llm\.(?!base_model\.)(.*)", r"language_model.\1"),
    (r"encoder\..*", lambda match: openai_name(match[0]).replace("encoder.", "audio_tower.", 1)),
]
_OTHER_PROJECTORS = {"conv1d": "cov1d-linear", "qformer": "q-former"}
_USUAL_RATE = 5
_WHISPER = "the Whisper that it was trained with"
_LLM = "the LLM that it was trained with"


def _file(release: Release) -> Path | None:
    """The `.pt` file that was named, or the `model.pt` of a folder that holds no model of transformers."""
    if release.file is None and (release.folder / "config.json").is_file():
        return None
    pattern = "model.pt" if release.file is None else "*.pt"
    return next(iter(release.pickled_files(pattern, _PROJECTOR)), None)


def _recognises(release: Release) -> bool:
    return _file(release) is not None


def _read(release: Release, parts: Parts) -> Reading:
    path = _file(release)
    assert path is not None  # otherwise the release would not have been recognised
    release = Release.at(path)
    settings = _Settings.beside(path)
    linear_1, linear_2 = _projector(release, settings)
    places = {"encoder": parts.need("encoder", release, _WHISPER), "llm": parts.need("llm", release, _LLM)}
    (whisper, feature_extractor), llm = whisper_part(places["encoder"]), llm_part(places["llm"])
    window = settings.window(linear_1.shape[1], whisper.config.d_model, places["encoder"])
    check_width("llm", places["llm"], llm.config.get_text_config().hidden_size, len(linear_2))
    sizes: dict[str, Any] = {"window": window, "hidden_size": len(linear_1), "drop_partial_window": True}
    config = LsmConfig(
        audio_config=whisper.config,
        projector_config=LsmProjectorConfig(connector="frame_stack", **sizes),
        text_config=llm.config,
        encoder_context="padded",
    )
    alpha = settings.alpha(release)

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        own = rename(release.tensors, _RULES, path)
        adapters = {name: tensor for name, tensor in own.items() if ".lora_" in name}
        weights = {**whisper.tensors(dtype), **llm.tensors(dtype), **own}
        weights = {name: tensor for name, tensor in weights.items() if name not in adapters}
        return merge_lora(weights, adapters, alpha, dtype, path)

    tokenizer = read_tokenizer(places["llm"])
    return Reading(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        feature_extractor=feature_extractor,
        template="slam_llm",
        eos_token_ids=eos_token_ids(release, tokenizer, llm.config),
        parts={"encoder": whisper.identity, "llm": llm.identity},
        settings={"lora_alpha": alpha} if alpha else {},
        release=release,
    )


@dataclass(frozen=True)
class _Settings:
    """The settings of a training run; `where` is the file that they were or would be read from."""

    values: Mapping[str, Any]
    where: Path

    @classmethod
    def beside(cls, path: Path) -> _Settings:
        folders = (path.parent, path.resolve().parent.parent)
        found = next((file for folder in folders if (file := folder / ".hydra" / "config.yaml").is_file()), None)
        if found is None:
            return cls({}, path.parent / ".hydra" / "config.yaml")
        try:
            values = load_yaml(found.read_bytes())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f"{found} cannot be read: {' '.join(str(error).split())[:200]}") from error
        return cls(values if isinstance(values, Mapping) else {}, found)

    def get(self, *names: str) -> Any:
        """A setting, given the names of its nested keys; None if it is missing."""
        value: Any = self.values
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def alpha(self, release: Release) -> float:
        """The scale of the LLM's adapters; 0 if there are none."""
        if not any(".lora_" in name for name in release.tensors):
            return 0.0
        alpha = self.get("train_config", "peft_config", "lora_alpha")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise InputError(
                f"{release.file} holds adapters of its LLM, whose lora_alpha is not known: write that of the training "
                f"run into {self.where}, as train_config: {{peft_config: {{lora_alpha: NUMBER}}}}"
            )
        return float(alpha)

    def window(self, read: int, width: int, place: str) -> int:
        """Number of states that the projector stacks, given its input size `read` and the `width` of a state."""
        rate = self.get("model_config", "encoder_projector_ds_rate") or _USUAL_RATE
        if not isinstance(rate, int) or rate * width != read:
            raise InputError(
                f"--encoder {place} has hidden states {width} wide, and the projector reads {read} values, those of "
                f"{rate} states: give {_WHISPER}; or, if it reads another number of states, write that into "
                f"{self.where}, as model_config: {{encoder_projector_ds_rate: NUMBER}}"
            )
        return rate


def _projector(release: Release, settings: _Settings) -> tuple[Tensor, Tensor]:
    """Weights of the projector's two linear layers, `[hidden, stacked states]` and `[llm_dim, hidden]`."""
    encoder = settings.get("model_config", "encoder_name")
    if encoder not in (None, "whisper"):
        raise InputError(f"{settings.where} has encoder_name {encoder!r}: only checkpoints with Whisper can be read")
    for module, name in _OTHER_PROJECTORS.items():
        if release.holds(f"{_PROJECTOR}{module}"):
            raise InputError(
                f"{release.file} has the projector {name!r}, for which there is no connector: only 'linear' can be read"
            )
    first, second = (release.tensors.get(f"{_PROJECTOR}linear{i}.weight") for i in (1, 2))
    if first is None or second is None:
        raise InputError(f"{release.file} lacks linear1 or linear2 of its projector: get an undamaged copy")
    return first, second


SYSTEMS.register("slam_llm")(System("SLAM-LLM", _recognises, _read, ("encoder", "llm")))
