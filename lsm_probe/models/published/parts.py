"""The parts that releases leave out, read from elsewhere: Whisper, BEATs and the LLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from lsm_probe.assets.whisper import openai_config, openai_name
from lsm_probe.errors import InputError
from lsm_probe.models.beats import convert_beats, convert_beats_config
from lsm_probe.models.causal_llm import is_causal, load_causal_llm
from lsm_probe.models.identification import check_folder, identify, identify_files
from lsm_probe.models.identity import WeightsIdentity
from lsm_probe.models.pretrained import pretrained, pretrained_model
from lsm_probe.models.published.release import read_unpickled

_ENCODER = "encoder."


@dataclass(frozen=True)
class Part:
    """A part of an LSM that is not in the release.

    Attributes:
        config: its own configuration.
        tensors: reads its weights in the given dtype, by their names in the LSM. A folder is verified first.
        identity: hashes its weights, which takes minutes for a large LLM.
    """

    config: Any
    tensors: Callable[[torch.dtype], Mapping[str, Tensor]]
    identity: Callable[[], WeightsIdentity]


def whisper_part(place: str, *, whole: bool = False) -> tuple[Part, WhisperFeatureExtractor]:
    """A Whisper as an audio tower, and its feature extractor.

    Args:
        place: folder or hub name of a Whisper, or an OpenAI `.pt` file.
        whole: include its decoder.

    Raises:
        InputError: it cannot be read, or is not a Whisper.
    """
    if Path(place).suffix == ".pt":
        return _openai_part(Path(place), whole)
    config = pretrained(AutoConfig, place)
    if not isinstance(config, WhisperConfig):
        raise InputError(f"{place} is a {config.model_type!r} model: give a Whisper")

    def read(dtype: torch.dtype) -> Mapping[str, Tensor]:
        model = pretrained_model(WhisperModel, place, dtype, part="" if whole else r"encoder\.")
        return _as_tower(model.state_dict(), whole)

    return _part_of_folder(place, config, read), pretrained(WhisperFeatureExtractor, place)


def beats_part(place: str) -> Part:
    """BEATs from a file released by its authors, which holds its settings (`cfg`) and its weights (`model`).

    Raises:
        InputError: it cannot be read, or is not a BEATs variant that is implemented.
    """
    path = Path(place)
    if not path.is_file():
        raise InputError(f"--beats {place} is not a file: give the file of BEATs' weights")
    content = read_unpickled(path)
    if not all(isinstance(content.get(key), Mapping) for key in ("cfg", "model")):
        raise InputError(f"{path} is not a BEATs: it lacks 'cfg' or 'model'; give the file of its authors")
    config = convert_beats_config(content["cfg"], path)

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        state = convert_beats(content["model"], path)
        return {f"audio_tower.beats.{name}": tensor for name, tensor in state.items()}

    return Part(config, tensors, partial(_identify_file, path, "beats"))


def llm_part(place: str) -> Part:
    """A causal LLM from a folder or hub name.

    Raises:
        InputError: it cannot be read, or is not a causal LLM.
    """
    config: PreTrainedConfig = pretrained(AutoConfig, place)
    if not is_causal(config):
        raise InputError(f"--llm {place} is a {config.model_type!r} model, and no causal text LLM: give a text LLM")

    def read(dtype: torch.dtype) -> Mapping[str, Tensor]:
        state = load_causal_llm(f"--llm {place}", place, dtype).state_dict()
        # Quantisation in transformers may have put them on a GPU; the rest of the release is on the CPU.
        return {f"language_model.{name}": tensor.cpu() for name, tensor in state.items()}

    return _part_of_folder(place, config, read)


def check_width(part: str, place: str, width: int, needed: int) -> None:
    """Refuses a part whose width does not match the connector.

    Args:
        part: one of [`lsm_probe.models.published.PARTS`].
        place: where it was read from.
        width: width of its hidden states.
        needed: width that the connector reads or outputs.

    Raises:
        InputError: they differ.
    """
    if width != needed:
        raise InputError(
            f"--{part} {place} has hidden states {width} wide, and the connector was trained with {needed}: give the "
            f"{part} that it was trained with"
        )


def _openai_part(path: Path, whole: bool) -> tuple[Part, WhisperFeatureExtractor]:
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the Whisper's")
    content = read_unpickled(path)
    if not {"dims", "model_state_dict"} <= content.keys():
        raise InputError(f"{path} is not a Whisper of OpenAI's: it lacks 'dims' or 'model_state_dict'")
    config = openai_config(content["dims"])

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        return _as_tower({openai_name(name): value for name, value in content["model_state_dict"].items()}, whole)

    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    return Part(config, tensors, partial(_identify_file, path, config.model_type)), extractor


def _part_of_folder(place: str, config: PreTrainedConfig, read: Callable[[torch.dtype], Mapping[str, Tensor]]) -> Part:
    """A part in a folder or on the hub. Its checksums are verified once, before its weights are read."""
    verified = cache(lambda: check_folder(place))

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        verified()
        return read(dtype)

    return Part(config, tensors, lambda: identify(place, config, verified()))


def _identify_file(path: Path, model_type: str) -> WeightsIdentity:
    hashes = identify_files([path], path.parent, None)
    return WeightsIdentity(model_type=model_type, checksums="unverified", weights_sha256=hashes)


def _as_tower(state: Mapping[str, Tensor], whole: bool) -> dict[str, Tensor]:
    if whole:
        return {f"audio_tower.{name}": tensor for name, tensor in state.items()}
    encoder = {name.removeprefix(_ENCODER): t for name, t in state.items() if name.startswith(_ENCODER)}
    return {f"audio_tower.{name}": tensor for name, tensor in encoder.items()}
