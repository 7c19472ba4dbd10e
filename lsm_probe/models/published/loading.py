"""From the folder of a published checkpoint to an LSM of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import GenerationConfig
from transformers.utils import CONFIG_NAME

from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.checkpoint_names import may_be_on_hub
from lsm_probe.models.dates import with_date
from lsm_probe.models.identity import (
    ConnectorIdentity,
    EncoderIdentity,
    ModelIdentity,
    check_folder,
    identify_files,
)
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
from lsm_probe.models.processing_lsm import LsmProcessor
from lsm_probe.models.prompter import describe_prompt
from lsm_probe.models.published.release import Release
from lsm_probe.models.published.system import PARTS, SYSTEMS, Parts, Reading, System
from lsm_probe.models.templates import find_template
from lsm_probe.models.tensors import check_tensors, complete_loading_info

_NOT_NEEDED = ["*.py", "*.md", "*.png", "*.msgpack", "*.h5", "*.onnx"]


def find_system(name: str | Path) -> str | None:
    """The name of the published system that a folder or file holds; None if it holds none that is known."""
    release = Release.at(name)
    if not release.folder.is_dir():
        return None
    return next((system for system, found in SYSTEMS.items() if found.recognises(release)), None)


def download_release(name: str) -> Path | None:
    """The folder of a published system on the model hub, downloaded; None of any other name.

    Its `config.json` must be in the hub's cache already, where looking for it puts it.

    Raises:
        InputError: the hub does not give its files.
    """
    config = try_to_load_from_cache(name, CONFIG_NAME) if may_be_on_hub(name) else None
    if not isinstance(config, str) or find_system(Path(config).parent) is None:
        return None
    try:
        return Path(snapshot_download(name, ignore_patterns=_NOT_NEEDED))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(f"{name} cannot be downloaded: {' '.join(str(error).split())[:200]}") from error


def read_published(name: str | Path, parts: Parts) -> tuple[Reading, LsmProcessor]:
    """Reads all of a published checkpoint but its weights.

    Raises:
        InputError: it is none that is known, lacks a part, or is damaged.
    """
    release = Release.at(name)
    reading = _system(name).read(release, parts)
    processor = LsmProcessor.for_model(reading.config, reading.feature_extractor, reading.tokenizer, reading.template)
    return reading, processor


def load_published(
    name: str | Path, parts: Parts, dtype: torch.dtype, *, template: str | None = None, date: str | None = None
) -> Lsm:
    """Loads a published checkpoint as an LSM; the arguments are those of [`lsm_probe.load`].

    Raises:
        InputError: it is none that is known, lacks a part, has one that was given, or holds tensors that its system
            does not have.
    """
    check_parts(name, parts)
    release = Release.at(name)
    checksums = check_folder(release.folder)
    system = find_system(name)
    reading, processor = read_published(name, parts)
    processor = with_date(processor, date)
    processor.template = find_template(template or processor.template)
    checkpoint = Lsm(str(name), _model(reading, name, dtype), processor)
    config = reading.config
    encoder = reading.parts.get("encoder")
    tower: dict[str, Any] = {"context": config.encoder_context, "decoder_states": config.decoder_states}
    checkpoint.identity = ModelIdentity(
        model_type=config.model_type,
        published=system,
        checksums=checksums,
        weights_sha256=identify_files(release.files, release.folder, checksums),
        encoder=EncoderIdentity(**vars(encoder), **tower) if encoder else None,
        llm=reading.parts.get("llm"),
        beats=reading.parts.get("beats"),
        connector=ConnectorIdentity(settings=processor.projector, trained=True),
        **describe_prompt(checkpoint, str(name), date),
    )
    return checkpoint


def used_parts(name: str | Path, parts: Parts) -> Parts:
    """Of the parts given, those that a checkpoint leaves out; all of them for a hub name, which only loading tells."""
    if may_be_on_hub(str(name)):
        return parts
    system = find_system(name)
    needs = SYSTEMS[system].missing_parts(Release.at(name)) if system else ()
    return Parts(**{part: getattr(parts, part) for part in PARTS if part in needs})


def check_parts(name: str | Path, parts: Parts) -> None:
    """Refuses a part that a checkpoint does not leave out.

    Raises:
        InputError: such a part was given.
    """
    used = used_parts(name, parts)
    if unused := [part for part in PARTS if getattr(parts, part) != getattr(used, part)]:
        raise InputError(f"--{unused[0]} {getattr(parts, unused[0])}: {name} has its own; leave the option out")


def _system(name: str | Path) -> System:
    found = find_system(name)
    if found is None:
        raise InputError(f"{name} is no published checkpoint that can be read; known are: {', '.join(SYSTEMS)}")
    return SYSTEMS[found]


def _model(reading: Reading, name: str | Path, dtype: torch.dtype) -> LsmForConditionalGeneration:
    tensors = {key: tensor.to(dtype) for key, tensor in reading.tensors(dtype).items()}
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    load: Any = LsmForConditionalGeneration.from_pretrained
    with complete_loading_info() as completed:
        model, loaded = load(None, config=reading.config, state_dict=tensors, **options)
    check_tensors(model, loaded | completed, name, reading.config, {})
    # A release's own sampling settings do not hold here: responses are greedy.
    model.generation_config = GenerationConfig(eos_token_id=reading.eos_token_ids)
    evaluated: LsmForConditionalGeneration = model.eval()
    return evaluated
