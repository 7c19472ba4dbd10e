"""Samples from common data sources; see [`samples`]."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.data.manifest import explain
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.rows import Rows, find_rows
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.files import regular_file_bytes

Column = str | Literal[False] | None
"""A column's name, False to leave the key out, or None for the column that has one of the usual names."""

_USUAL_NAMES = {
    "audio": ("audio_filepath", "audio_path", "file", "file_name", "path", "wav"),
    "text": ("transcript", "transcription", "sentence", "normalized_text", "raw_text", "raw_transcription"),
}
"""Usual column names for each key. The key's own name is tried first."""
_SHOWN = 20
"""Largest number of columns that a message lists."""


def samples(
    source: Any,
    *,
    audio: Column = None,
    text: Column = None,
    instruction: str | Sequence[str] | None = None,
    id: Column = None,
    target: Column = None,
    alternatives: Column = None,
    task: Column = None,
    language: Column = None,
    context: Column = None,
    start: Column = None,
    duration: Column = None,
    rate: str | int | None = None,
    on_error: OnError = "fail",
) -> list[Sample]:
    """Make samples from a data set or from arrays. Nothing is decoded, and nothing is written to disk.

    A keyword names a column; False leaves out its key. Without the keyword, a key comes from the column of the same
    name. Audio and text can also come from the one column with a usual name for them (`path`, `sentence`, ...). If
    several columns qualify, an error asks for the name of one.

    Audio is a path of a sound file, the bytes of one, `{"array", "sampling_rate"}`, `{"bytes", "path"}`,
    `(waveform, sampling_rate)`, or a waveform if `rate` gives the sampling rate. When it is read, the same code as for
    the files of a manifest converts it to 16 kHz mono, so that the numbers are the same.

    Args:
        source: a `datasets.Dataset` (one split), a pandas `DataFrame`, a lhotse `CutSet`, a list of
            `(waveform, sampling_rate)`, or a list of dictionaries. Waveforms are mono, `[samples]`: floating-point
            numbers within -1 and 1, or integers of 8, 16 or 32 bits.
        audio: column of the audio. False makes samples of text alone.
        text: column of the transcript.
        instruction: a column, one instruction for all samples, or a list of instructions that the samples use in
            rotation.
        id: column of names; without one the samples are numbered from 0.
        target: column of reference responses.
        alternatives: column of lists of further right answers, which evaluation also accepts.
        task: column of the names of tasks.
        language: column of the languages of the speech.
        context: column of further text for the prompt.
        start: column with the start of the section in the audio, seconds.
        duration: column of the section's length, seconds. If there is a column of this name, it must be named or be
            False, because many data sets store the rounded length of the whole file in it.
        rate: sampling rate of waveforms without one, Hz, or its column.
        on_error: at rows that cannot be used: "fail", or "skip" them with one UserWarning that counts them.

    Returns:
        The samples, in the order of the rows.

    Raises:
        InputError: the source, a keyword or a row cannot be used; lists the columns, or names the row.

    Example:
        >>> tone = np.sin(np.arange(16_000) / 10).astype(np.float32)
        >>> found = lsm_probe.samples([(tone, 16_000)], instruction="Write down what the speaker says.")
        >>> found[0].id, found[0].audio
        ('0', AudioBytes('audio of row 0', 64,058 bytes))
    """
    rows = find_rows(source)
    named = {"audio": audio, "text": text, "id": id, "target": target, "task": task, "language": language}
    named |= {"alternatives": alternatives, "context": context, "start": start, "duration": duration}
    columns = {key: column for key, name in named.items() if (column := _find_column(key, name, rows))}
    if "audio" not in columns and audio is not False:
        raise InputError(f"the audio column is not known: name it with audio=, or give audio=False; {_listed(rows)}")
    rate_column = _check_column("rate", rate, rows) if isinstance(rate, str) else None
    next_instruction = _instructions(instruction, rows, columns)
    found: dict[str, Sample] = {}
    problems = Problems()
    wanted = list(dict.fromkeys([*columns.values(), *([rate_column] if rate_column else [])]))
    for i, row in enumerate(rows.read(wanted)):
        own_instruction = next_instruction()
        with problems.catching(f"row {i}"):
            if isinstance(row, InputError):
                raise row
            values = {"id": str(i), **own_instruction, **_values(row, columns, rows)}
            own_rate = row.get(rate_column) if rate_column else rate
            if "audio" in values:
                values["audio"] = _audio(values["audio"], own_rate, f"audio of row {i}")
            sample = _sample(values)
            if sample.id in found:
                raise InputError(f"an earlier row has the same id {sample.id!r}; ids must be unique, or give id=False")
            found[sample.id] = sample
    problems.settle(on_error)
    if not found:
        raise InputError("there are no samples: the source has no row that can be used")
    return list(found.values())


def _find_column(key: str, name: Column, rows: Rows) -> str | None:
    """The column of a key, or None if there is none.

    Raises:
        InputError: there is no such column, or several qualify.
    """
    if name is False:
        return None
    if name is not None:
        return _check_column(key, name, rows)
    if key in ("start", "duration"):
        if key in rows.columns and not rows.have_sections:
            raise InputError(
                f"there is a column {key!r}: give {key}={key!r} if it says which section of the audio to read, or "
                f"{key}=False to leave it out"
            )
        return None
    if key == "audio" and rows.audio:
        return _only(key, rows.audio, rows)
    if key in rows.columns:
        return key
    return _only(key, [name for name in _USUAL_NAMES.get(key, ()) if name in rows.columns], rows)


def _only(key: str, candidates: Sequence[str], rows: Rows) -> str | None:
    if len(candidates) > 1:
        several = " or ".join(map(repr, candidates))
        raise InputError(f"{key} may be {several}: name it with {key}=; {_listed(rows)}")
    return candidates[0] if candidates else None


def _check_column(key: str, name: object, rows: Rows) -> str:
    if not isinstance(name, str) or name not in rows.columns:
        raise InputError(f"{key}={name!r} is not a column; {_listed(rows)}")
    return name


def _listed(rows: Rows) -> str:
    more = f", and {len(rows.columns) - _SHOWN} more" if len(rows.columns) > _SHOWN else ""
    return f"the columns are {', '.join(map(repr, rows.columns[:_SHOWN])) or 'none'}{more}"


def _instructions(
    given: str | Sequence[str] | None, rows: Rows, columns: dict[str, str]
) -> Callable[[], dict[str, str]]:
    """Sets the instruction for the next row; a column of instructions goes into `columns` instead."""
    if given is None and "instruction" in rows.columns:
        given = "instruction"
    if isinstance(given, str) and given in rows.columns:
        columns["instruction"] = given
        return dict
    if isinstance(given, str) and len(given.split()) < 2:
        raise InputError(
            f"instruction={given!r} is not a column, and a single word is not accepted as an instruction: give a "
            "column, a "
            f"sentence, or [{given!r}] if this is the instruction; {_listed(rows)}"
        )
    texts = [given] if isinstance(given, str) else list(given or ())
    if not texts:
        raise InputError(f"there is no instruction: give instruction= a column, a sentence or a list; {_listed(rows)}")
    turn = cycle(texts)
    return lambda: {"instruction": next(turn)}


def _values(row: Mapping[str, Any], columns: Mapping[str, str], rows: Rows) -> dict[str, Any]:
    """The values of a row by key, without those that are missing (None, NaN, NaT)."""
    own = {"start": "start", "duration": "duration"} if rows.have_sections else {}
    found = {key: _plain(row.get(column)) for key, column in {**columns, **own}.items()}
    if isinstance(found.get("id"), int) and not isinstance(found["id"], bool):
        found["id"] = str(found["id"])
    if isinstance(found.get("alternatives"), np.ndarray):  # pandas reads the lists of a Parquet file as arrays
        found["alternatives"] = found["alternatives"].tolist()
    return {key: value for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """A numpy number as a Python number; None for missing values."""
    import pandas as pd

    if isinstance(value, np.generic):
        value = value.item()
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else value


def _audio(value: Any, rate: Any, name: str) -> str | Path | AudioBytes:
    """Audio in the form that a sample holds.

    Raises:
        InputError: it is of another kind, or a waveform whose sampling rate is not known.
    """
    if isinstance(value, AudioBytes | Path | str):
        return value
    if isinstance(value, Mapping) and value.get("array") is not None:
        return AudioBytes.from_waveform(value["array"], value.get("sampling_rate") or rate, name)
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return AudioBytes(value["bytes"], value.get("path") or name)
    if isinstance(value, Mapping) and value.get("path"):
        return str(value["path"])
    if isinstance(value, bytes | bytearray | memoryview):
        return AudioBytes(bytes(value), name)
    if isinstance(value, tuple) and len(value) == 2:
        return AudioBytes.from_waveform(*value, name)
    if isinstance(value, np.ndarray | list) or hasattr(value, "detach"):
        if rate is None:
            raise InputError("the audio is a waveform without a sampling rate: give rate= its Hz, or (waveform, rate)")
        return AudioBytes.from_waveform(value, rate, name)
    if type(value).__name__ == "AudioDecoder":
        raise InputError("the audio was decoded by torchcodec: give the Dataset itself, not its rows")
    raise InputError(f"the audio is a {type(value).__name__}: give a path, the bytes of a file, or (waveform, rate)")


def _sample(values: dict[str, Any]) -> Sample:
    try:
        sample = Sample.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error)) from None
    if isinstance(sample.audio, Path):
        try:
            regular_file_bytes(sample.audio)
        except InputError as error:
            raise InputError(f"audio {error}") from None
    return sample
