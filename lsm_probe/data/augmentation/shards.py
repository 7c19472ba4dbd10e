"""Parquet shards: a row for every sample, kept or dropped, with everything that led to its response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsm_probe.errors import InputError
from lsm_probe.files import replacing

# Large strings: the columns of a million samples together exceed the 2 GiB that plain ones can hold.
SCHEMA = pa.schema(
    [
        ("number", pa.int64()),  # place of the sample in the data
        ("sample_id", pa.large_string()),
        ("audio", pa.large_string()),
        ("start", pa.float64()),  # seconds
        ("duration", pa.float64()),  # seconds
        ("language", pa.large_string()),
        ("text", pa.large_string()),  # the transcript
        ("task", pa.large_string()),
        ("instruction_id", pa.large_string()),
        ("instruction", pa.large_string()),
        ("response", pa.large_string()),
        ("thinking", pa.large_string()),  # a reasoning model's text before the response; null if there is none
        ("finish_reason", pa.large_string()),  # stop, length or transcript; empty if nothing was generated
        ("prompt_tokens", pa.int32()),
        ("response_tokens", pa.int32()),  # including thinking and EOS
        ("keep", pa.bool_()),
        ("drop_reason", pa.large_string()),
        ("prompt_sha256", pa.large_string()),  # of the prompt's token ids, first 16 digits
    ]
)

_SECONDS = b"seconds"


def write_shard(path: Path, rows: Sequence[dict[str, Any]], seconds: float) -> None:
    """Writes a shard atomically, with the time that its generation took."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA.with_metadata({_SECONDS: repr(seconds).encode()}))
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def remove_leftovers(folder: Path) -> None:
    """Removes the incomplete file of a killed process."""
    for leftover in folder.glob(".*.parquet"):
        leftover.unlink()


def rows_in(path: Path) -> int | None:
    """Rows of a shard; None if it does not exist or cannot be read."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException):
        return None


def read_shards(folder: Path) -> tuple[pa.Table, float]:
    """All rows in the order of the data, and the seconds of their generation.

    Raises:
        InputError: a shard cannot be read.
    """
    tables, seconds = [], 0.0
    for path in sorted(folder.glob("[!.]*.parquet")):
        try:
            table = pq.read_table(path, schema=SCHEMA)
            metadata = pq.read_schema(path).metadata or {}
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} cannot be read ({reason}): delete it and continue with --resume") from error
        seconds += float(metadata.get(_SECONDS, b"0"))
        tables.append(table)
    rows = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    return rows.sort_by("number"), seconds
