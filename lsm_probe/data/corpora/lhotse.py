"""Any corpus prepared by lhotse: `*recordings*.jsonl(.gz)` with `*supervisions*.jsonl(.gz)`, and `*cuts*.jsonl(.gz)`.

The lines are parsed here and never passed to lhotse, which runs a source of type "command" in a shell. Only these are
accepted: sources that are files, recordings of one file with one channel and no transforms, and cuts of type `MonoCut`.
Relative file names start at the current folder, as in lhotse.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lsm_probe.data.corpora.tables import Wanted, at, objects_of, parsed
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError
from lsm_probe.languages import find_language

_NAME = re.compile(r"(.*?)(recordings|supervisions|cuts)(.*)\.jsonl(?:\.gz)?")
_REFUSED = {"command": "is a shell command, which is never run", "url": "is a URL, which is never fetched"}


class _Source(BaseModel):
    type: str
    channels: list[int]
    source: str


class _Recording(BaseModel):
    id: str | int
    sources: list[_Source]
    transforms: list[Any] | None = None


class _Supervision(BaseModel):
    id: str | int
    recording_id: str | int
    start: float
    duration: float
    channel: int | list[int]
    text: str | None = None
    language: str | None = None


class _Cut(BaseModel):
    start: float
    recording: _Recording | None = None
    supervisions: list[_Supervision] = []


def read_lhotse(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """An utterance for each supervision; without a language if the corpus names none.

    `librispeech_{recordings,supervisions}_dev.jsonl.gz` are the split "librispeech_dev", and
    `librispeech_cuts_dev.jsonl.gz` is "librispeech_cuts_dev", which may hold the same again.
    """
    splits = _splits(root)
    if not splits:
        raise InputError(f"{root} holds no *recordings*.jsonl, *supervisions*.jsonl or *cuts*.jsonl(.gz); check --root")
    for split, files in splits.items():
        if wanted(split):
            with problems.catching():
                yield from _cuts(split, files["cuts"], problems) if "cuts" in files else _pair(split, files, problems)


def _splits(root: Path) -> dict[str, dict[str, Path]]:
    """Split to kind to file."""
    splits: dict[str, dict[str, Path]] = {}
    for path in sorted(root.iterdir()):
        if match := _NAME.fullmatch(path.name):
            before, kind, after = match.groups()
            rest = "_".join(part.strip("_") for part in (before, after) if part.strip("_")) or "all"
            files = splits.setdefault(f"{before}cuts{after}" if kind == "cuts" else rest, {})
            if kind in files:
                raise InputError(f"{path} also exists as {files[kind].name}; keep one of them")
            files[kind] = path
    return splits


def _pair(split: str, files: dict[str, Path], problems: Problems) -> Iterator[Utterance]:
    for kind, other in (("recordings", "supervisions"), ("supervisions", "recordings")):
        if other not in files:
            raise InputError(f"{files[kind]} has no {other} beside it; prepare the corpus again")
    sounds: dict[str, tuple[Path, int]] = {}
    for number, values in objects_of(files["recordings"], problems):
        with problems.catching(at(files["recordings"], number)):
            recording = parsed(_Recording, values)
            if str(recording.id) in sounds:
                raise InputError(f"recording {str(recording.id)!r} occurs twice; ids must be unique")
            sounds[str(recording.id)] = _sound(recording)
    unused = set(sounds)
    for number, values in objects_of(files["supervisions"], problems):
        with problems.catching(at(files["supervisions"], number)):
            supervision = parsed(_Supervision, values)
            name = str(supervision.recording_id)
            if name not in sounds:
                raise InputError(
                    f"recording {name!r} was left out or is not in {files['recordings']}; correct it there"
                )
            unused.discard(name)
            yield _utterance(split, supervision, sounds[name])
    if unused:
        warnings.warn(f"{len(unused)} recordings of {files['recordings']} have no supervision", stacklevel=2)


def _cuts(split: str, path: Path, problems: Problems) -> Iterator[Utterance]:
    unlabelled = 0
    for number, values in objects_of(path, problems):
        with problems.catching(at(path, number)):
            if values.get("type") != "MonoCut":
                raise InputError(f"is a {values.get('type')!r}, and only MonoCut can be read; save its audio first")
            cut = parsed(_Cut, values)
            if cut.recording is None:
                raise InputError("has no recording, perhaps only features; prepare the cuts with recordings")
            sound = _sound(cut.recording)
            unlabelled += not cut.supervisions
            yield from (_utterance(split, supervision, sound, cut.start) for supervision in cut.supervisions)
    if unlabelled:
        warnings.warn(f"{unlabelled} cuts of {path} have no supervision", stacklevel=2)


def _sound(recording: _Recording) -> tuple[Path, int]:
    """File and channel."""
    who = f"recording {str(recording.id)!r}"
    if len(recording.sources) != 1:
        raise InputError(f"{who} has {len(recording.sources)} sources; join them to one file")
    source = recording.sources[0]
    if source.type != "file":
        reason = _REFUSED.get(source.type, f"is of type {source.type!r}")
        raise InputError(f"{who}: its source {reason}; save the audio to a file and prepare again")
    if len(source.channels) != 1:
        raise InputError(f"{who} has {len(source.channels)} channels; write each to a file of its own")
    if recording.transforms:
        raise InputError(f"{who} has transforms, which lhotse applies as it loads; save the audio and prepare again")
    return Path(source.source), source.channels[0]


def _utterance(split: str, supervision: _Supervision, sound: tuple[Path, int], start: float = 0.0) -> Utterance:
    path, channel = sound
    if supervision.channel not in (channel, [channel]):
        raise InputError(
            f"has channel {supervision.channel}, and its recording has channel {channel}; correct one of them"
        )
    language = find_language(supervision.language, "language ")
    return Utterance(
        str(supervision.id),
        split,
        supervision.text,
        audio=path,
        start=round(start + supervision.start, 6),
        duration=supervision.duration,
        language=language.code if language else None,
    )
