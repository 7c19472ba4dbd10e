"""Rows of common data sources: Hugging Face datasets, pandas frames, lhotse cuts, plain Python.

Rows are dictionaries. Audio in them keeps its form (a path, bytes, an array); nothing is decoded. The libraries are
recognised by the names of their classes, so none of them is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.errors import InputError

_EXPECTED = (
    "a Hugging Face Dataset, a pandas DataFrame, a lhotse CutSet, a list of (waveform, sampling rate), or a list of "
    "dictionaries"
)
_AS_ARRAYS = "let lhotse read it and give rows such as {'audio': (cut.load_audio(), cut.sampling_rate), ...}"


@dataclass(frozen=True)
class Rows:
    """Rows that are read on demand.

    Attributes:
        columns: their names.
        read: `read(columns)` yields the rows with these columns. A row that cannot be used is an InputError instead.
        audio: the columns that the source itself declares as audio.
        have_sections: whether the source itself gives begin and end of a row's audio (`start`, `duration`).
    """

    columns: Sequence[str]
    read: Callable[[Sequence[str]], Iterable[Mapping[str, Any] | InputError]]
    audio: Sequence[str] = ()
    have_sections: bool = False


def find_rows(source: Any) -> Rows:
    """The rows of a source.

    Raises:
        InputError: the source is of no kind that can be read.
    """
    library, kind = type(source).__module__.partition(".")[0], type(source).__name__
    if library == "datasets" and isinstance(source, Mapping):
        splits = ", ".join(map(repr, source))
        raise InputError(f"this {kind} has the splits {splits}: give one of them, such as data[{next(iter(source))!r}]")
    if library == "datasets":
        return _of_dataset(source)
    if library == "pandas" and kind == "DataFrame":
        return _of_frame(source)
    if library == "lhotse":
        return _of_cuts(source)
    if isinstance(source, str | Path):
        raise InputError(f"{source} is a path: read a manifest with lsm_probe.read_manifest, or give {_EXPECTED}")
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InputError(f"samples cannot be made from a {kind}: give {_EXPECTED}")
    return _of_items(list(source))


def _of_dataset(dataset: Any) -> Rows:
    """A `datasets.Dataset` or `IterableDataset`. Its audio is not decoded, so that torchcodec is not needed."""
    from datasets import Audio

    features = dataset.features or {}
    audio = [name for name, feature in features.items() if isinstance(feature, Audio)]
    for name in audio:
        dataset = dataset.cast_column(name, Audio(decode=False))
    if not hasattr(dataset, "select_columns") or not features:
        return _of_items(list(dataset))
    if not hasattr(dataset, "__len__"):
        return Rows(list(features), lambda columns: dataset.select_columns(list(columns)), audio)
    return Rows(list(features), lambda columns: _of_table(dataset.select_columns(list(columns)), audio), audio)


def _of_table(dataset: Any, audio: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows whose audio points into the table, which is usually on the disk: 10,000 clips need no memory."""
    plain = dataset.with_format(None).select_columns([name for name in dataset.column_names if name not in audio])
    table = dataset.with_format("arrow")
    for i in range(len(dataset)):
        row = dict(plain[i]) if plain.column_names else {}
        one = table[i]
        for name in audio:
            if name in dataset.column_names:
                row[name] = _undecoded(one.column(name))
        yield row


def _undecoded(column: Any) -> dict[str, Any] | None:
    """The entry of an Audio column; its bytes are a buffer of the table, without a copy."""
    (entry,) = (chunk for chunk in column.chunks if len(chunk))
    if entry.null_count:
        return None
    content, path = entry.field("bytes"), entry.field("path")[0].as_py()
    if content.null_count:
        return {"bytes": None, "path": path}
    _, ends, data = content.buffers()
    offsets = np.frombuffer(ends, np.int64 if str(content.type).startswith("large") else np.int32)
    begin, end = offsets[content.offset : content.offset + 2].tolist()
    return {"bytes": b"" if data is None else data.slice(begin, end - begin), "path": path}


def _of_frame(frame: Any) -> Rows:
    names = list(map(str, frame.columns))

    def read(columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        values = [frame.iloc[:, names.index(name)] for name in columns]
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))

    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the frame has several columns named {twice!r}: rename or drop all but one")
    return Rows(names, read)


def _of_items(items: list[Any]) -> Rows:
    rows: list[dict[str, Any] | InputError] = []
    for item in items:
        if isinstance(item, tuple) and len(item) == 2:
            item = {"audio": item}
        if not isinstance(item, Mapping):
            rate = " with its sampling rate, (waveform, rate)" if hasattr(item, "shape") else ""
            item = InputError(f"is a {type(item).__name__}: give each row as a dictionary or a waveform{rate}")
        rows.append(item)
    return Rows(_columns(rows), lambda wanted: rows)


def _columns(rows: Sequence[Mapping[str, Any] | InputError]) -> list[str]:
    """The columns of all rows.

    Raises:
        InputError: no row can be used.
    """
    for i, row in enumerate(rows):
        if not isinstance(row, InputError):
            return list(dict.fromkeys(name for row in rows if not isinstance(row, InputError) for name in row))
        if i == len(rows) - 1:
            raise InputError(f"row 0: {rows[0]}")
    raise InputError("there are no samples: the source has no rows")


def _of_cuts(cuts: Any) -> Rows:
    """A lhotse `CutSet`. Only sound files and audio in memory are read, never by lhotse, which would run commands."""
    rows = [_of_cut(cut) for cut in cuts]
    return Rows(
        [name for name in _columns(rows) if name not in ("start", "duration")], lambda wanted: rows, ["audio"], True
    )


def _of_cut(cut: Any) -> dict[str, Any] | InputError:
    who = f"cut {getattr(cut, 'id', '?')!r}"
    kind = type(cut).__name__
    if kind != "MonoCut":
        return InputError(f"{who} is a {kind}, and only MonoCut can be read: {_AS_ARRAYS}")
    if len(cut.supervisions) > 1:
        return InputError(f"{who} has {len(cut.supervisions)} supervisions: split it with cuts.trim_to_supervisions()")
    recording = cut.recording
    if recording is None:
        return InputError(f"{who} has no recording: give cuts with audio")
    if recording.transforms:
        return InputError(f"{who} has transforms, which lhotse applies as it loads: {_AS_ARRAYS}")
    if len(recording.sources) != 1 or len(recording.sources[0].channels) != 1:
        return InputError(f"{who} is of a recording of several channels or files: {_AS_ARRAYS}")
    source = recording.sources[0]
    if source.type not in ("file", "memory"):
        return InputError(
            f"{who}: its audio is of type {source.type!r}, which may run a command or fetch an address, and is "
            f"not read: {_AS_ARRAYS}"
        )
    is_whole = not cut.start and abs(cut.duration - recording.duration) < 1 / recording.sampling_rate
    supervision = cut.supervisions[0] if cut.supervisions else None
    own = {"text": supervision.text, "language": supervision.language} if supervision else {}
    return {
        **(cut.custom or {}),
        **((supervision.custom or {}) if supervision else {}),
        **own,
        "id": cut.id,
        "audio": Path(source.source) if source.type == "file" else AudioBytes(source.source, who),
        "start": round(float(cut.start), 6),
        "duration": None if is_whole else float(cut.duration),
    }
