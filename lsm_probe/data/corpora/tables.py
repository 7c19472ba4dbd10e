"""Lines and rows of the text files that corpora come with, each with the place it stands at."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lsm_probe.errors import InputError


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) for every line that is not blank, without its line break.

    Raises:
        InputError: the file does not exist or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\r\n")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check --root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); check the file") from None


def rows_of(path: Path, columns: Sequence[str], **dialect: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) for every row of a table with a header.

    Args:
        path: the table.
        columns: those that must be there.
        dialect: as `csv.DictReader` takes it; commas and double quotes without.

    Raises:
        InputError: the file does not exist, is not UTF-8, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", **dialect)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {missing[0]!r}; check that it is the corpus's own file")
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check --root") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); check the file") from None
