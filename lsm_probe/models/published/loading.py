"""Find, download and load published checkpoints as LSMs of this package."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import CONFIG_NAME

from lsm_probe.assets.cache import sha256
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.checkpoint_names import may_be_on_hub
from lsm_probe.models.dates import with_date
from lsm_probe.models.hub_files import find_file
from lsm_probe.models.identification import check_folder, identify_files
from lsm_probe.models.identity import ConnectorIdentity, EncoderIdentity, ModelIdentity, WeightsIdentity
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
from lsm_probe.models.pretrained import adapter_error
from lsm_probe.models.processing_lsm import LsmProcessor
from lsm_probe.models.prompter import describe_prompt
from lsm_probe.models.published.release import WEIGHTS, Release
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System
from lsm_probe.models.templates import find_template
from lsm_probe.models.tensors import check_other_file, check_tensors, complete_loading_info
from lsm_probe.models.weight_files import find_other_weights, is_of_model, read_shapes

_NO_WEIGHTS = ["*.json", "*.yaml", "*.txt", "*.model", "*.jinja"]


def find_system(name: str | Path) -> str | None:
    """The name of the published system in a folder or file; None if no system recognises it."""
    release = Release.at(name)
    if not release.folder.is_dir():
        return None
    return next((system for system, found in SYSTEMS.items() if found.recognises(release)), None)


def find_release(name: str | Path) -> Path | None:
    """The folder or file of a published checkpoint: the given path, or the local copy for a hub name.

    None for any other name. For a hub name, the folder may lack the weights; [`download_release`] fetches them.
    """
    place = Path(name)
    if may_be_on_hub(str(name)):
        config = cached_config(str(name))
        if config is None:
            return None
        place = config.parent
    return None if find_system(place) is None else place


def download_release(name: str) -> Path | None:
    """Downloads a published checkpoint from the model hub and returns its folder; None for any other name.

    Raises:
        InputError: its files cannot be downloaded from the hub.
    """
    if not may_be_on_hub(name):
        return None
    if cached_config(name) is None:
        find_file(name, CONFIG_NAME)  # puts it into the cache
    if find_release(name) is None:
        return None
    try:
        return Path(snapshot_download(name, allow_patterns=_patterns(name)))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(f"{name} cannot be downloaded: {' '.join(str(error).split())[:200]}") from error


def cached_config(name: str) -> Path | None:
    """The `config.json` of a hub name, if it is in the local hub cache."""
    try:
        found = try_to_load_from_cache(name, CONFIG_NAME)
    except ValueError:  # not a valid hub name
        return None
    return Path(found) if isinstance(found, str) else None


def _patterns(name: str) -> list[str]:
    """Patterns of the files to download for a hub name: settings, tokenizers, and weights in the format to read."""
    try:
        files = [file for file in list_repo_files(name) if "/" not in file and is_of_model(Path(file))]
    except (OSError, ValueError, HfHubHTTPError):
        # Offline: the files in the cache may be enough.
        return [*_NO_WEIGHTS, *WEIGHTS]
    return [*_NO_WEIGHTS, *next((found for kind in WEIGHTS if (found := fnmatch.filter(files, kind))), [])]


def read_published(name: str | Path, parts: Parts) -> tuple[Reading, LsmProcessor]:
    """Reads everything except the weights of a published checkpoint.

    Raises:
        InputError: its system is not known, it lacks a part, or it is damaged.
    """
    return _read(SYSTEMS[_require_system(name)], Release.at(name), parts)


def _read(system: System, release: Release, parts: Parts) -> tuple[Reading, LsmProcessor]:
    reading = system.read(release, parts)
    processor = LsmProcessor.for_model(reading.config, reading.feature_extractor, reading.tokenizer, reading.template)
    return reading, processor


def load_published(
    name: str | Path, parts: Parts, dtype: torch.dtype | None, *, template: str | None = None, date: str | None = None
) -> Lsm:
    """Loads a published checkpoint as an LSM; the arguments are those of [`lsm_probe.load`].

    If `dtype` is None, the weights get the smallest dtype that rounds none of them.

    Raises:
        InputError: its system is not known, it lacks a part, or it holds tensors that its system does not have.
    """
    release = Release.at(name)
    checksums = check_folder(release.folder)
    system = _require_system(name)
    reading, processor = _read(SYSTEMS[system], release, parts)
    processor = with_date(processor, date)
    processor.template = find_template(template or processor.template)
    config, release = reading.config, reading.release or release
    _check_no_adapter(release)
    checkpoint = Lsm(str(name), _model(reading, name, dtype), processor)
    # Last, because it hashes large files.
    parts_identities = {part: identify_part() for part, identify_part in reading.parts.items()}
    _check_other_files(release, checkpoint.model, parts_identities.values())
    encoder = parts_identities.get("encoder")
    tower: dict[str, Any] = {"context": config.encoder_context, "decoder_states": config.decoder_states}
    checkpoint.identity = ModelIdentity(
        model_type=config.model_type,
        published=system,
        checksums=checksums,
        weights_sha256=identify_files(release.files, release.folder, checksums),
        encoder=EncoderIdentity(**vars(encoder), **tower) if encoder else None,
        llm=parts_identities.get("llm"),
        beats=parts_identities.get("beats"),
        settings={**reading.settings, "eos_token_ids": reading.eos_token_ids},
        connector=ConnectorIdentity(settings=processor.projector, trained=True),
        **describe_prompt(checkpoint, str(name), date),
    )
    return checkpoint


def missing_parts(name: str | Path) -> tuple[str, ...]:
    """The names in [`PARTS`] of the parts that a published checkpoint leaves out.

    Raises:
        InputError: its system is not known, or it is damaged.
    """
    return SYSTEMS[_require_system(name)].missing_parts(Release.at(name))


def _check_no_adapter(release: Release) -> None:
    """Refuses an adapter (PEFT) beside the weights of a release that is a whole folder."""
    if release.file is None and (release.folder / "adapter_config.json").is_file():
        raise adapter_error(release.folder, min(release.files).name)


def _check_other_files(release: Release, model: LsmForConditionalGeneration, parts: Iterable[WeightsIdentity]) -> None:
    """Refuses weight files that were not read, unless they are those of a part or add no other tensors."""
    if release.file is not None:
        return
    files = {path.name: read_shapes(path) for path in release.files}
    hashes = [hashed for part in parts if (hashed := part.weights_sha256)]
    for other in find_other_weights(release.folder, release.files):
        if not any(other.name in hashed and hashed[other.name] == sha256(other) for hashed in hashes):
            check_other_file(model, release.folder, files, other.name, read_shapes(other))


def _require_system(name: str | Path) -> str:
    found = find_system(name)
    if found is None:
        raise InputError(f"{name} is not a published checkpoint that can be read; known are: {', '.join(SYSTEMS)}")
    return found


def _common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The smallest dtype (float16, bfloat16 or float32) that holds all of these weights without rounding."""
    stored = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return stored.pop() if stored in ({torch.bfloat16}, {torch.float16}) else torch.float32


def _model(reading: Reading, name: str | Path, dtype: torch.dtype | None) -> LsmForConditionalGeneration:
    read = reading.tensors(dtype or torch.float32)
    dtype = dtype or _common_dtype(read.values())
    tensors = {key: tensor.to(dtype) for key, tensor in read.items()}
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    load: Any = LsmForConditionalGeneration.from_pretrained
    with complete_loading_info() as completed:
        model, loaded = load(None, config=reading.config, state_dict=tensors, **options)
    check_tensors(model, loaded | completed, name, reading.config, {})
    # A release's own sampling settings are not used: responses are greedy.
    model.generation_config = GenerationConfig(eos_token_id=reading.eos_token_ids)
    evaluated: LsmForConditionalGeneration = model.eval()
    return evaluated
