"""Lines, rows and objects of the text files of corpora, each with its place in the file."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from lsm_probe.data.manifest import explain
from lsm_probe.data.problems import Problems
from lsm_probe.errors import InputError
from lsm_probe.files import regular_file_bytes

Wanted = Callable[[str], bool]
"""Returns whether a split is wanted."""

TABS: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
"""Dialect of tab-separated tables, in which a quotation mark has no special meaning."""

_LONGEST_LINE = 2**26
"""Longest line in bytes; a few kilobytes of gzip can decompress to a line of gigabytes."""

_LONGEST_NAME = 255
"""Longest file name, in characters, on common file systems."""

_Model = TypeVar("_Model", bound=BaseModel)


def at(path: Path, number: int) -> str:
    """The place of a line."""
    return f"{path}, line {number}"


def opened(path: Path, newline: str | None = None) -> TextIO:
    """A text file, if it is a regular file: reading a pipe or device from an archive might never end.

    Raises:
        InputError: it is not.
        OSError: it cannot be opened.
    """
    if path.exists():
        regular_file_bytes(path)
    return path.open(encoding="utf-8-sig", newline=newline)


def lines_of(path: Path, *, blank: bool = False) -> Iterator[tuple[str, str]]:
    """(place, line) for every line, without its line break; blank lines only with `blank`.

    Raises:
        InputError: the file does not exist or is not UTF-8.
    """
    try:
        with opened(path, newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if blank or line.strip():
                    yield at(path, number), line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def rows_of(
    path: Path, columns: Sequence[str], problems: Problems, **dialect: Any
) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) for every row of a table with a header; a row of another length is recorded in `problems`.

    The `dialect` is that of `csv.DictReader`; by default commas and double quotes.

    Raises:
        InputError: the file does not exist, is not UTF-8, or lacks a column.
    """
    try:
        with opened(path, newline="") as file:
            reader = csv.DictReader(file, **dialect)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {missing[0]!r}; check that it is the corpus's own file")
            for row in reader:
                place = at(path, reader.line_num)
                if None in row or None in row.values():
                    problems.add(place, "has more or fewer fields than the header; correct the row")
                else:
                    yield place, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None


def rows_of_parts(
    root: Path, tables: Mapping[str, str], columns: Sequence[str], problems: Problems, wanted: Wanted, **dialect: Any
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(part, place, row) for every row of the tables in `root`, part -> name, that are there and asked for.

    Raises:
        InputError: none of the tables is there; or as [`rows_of`].
    """
    there = {part: root / name for part, name in tables.items() if (root / name).exists()}
    if not there:
        raise InputError(f"{root} holds none of {', '.join(tables.values())}; check --root")
    for part, table in there.items():
        for place, row in rows_of(table, columns, problems, **dialect) if wanted(part) else ():
            yield part, place, row


def objects_of(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for every line of a JSONL file, `.gz` or plain; other lines are recorded in `problems`.

    Raises:
        InputError: the file cannot be read, or holds a line above 64 MiB.
    """
    regular_file_bytes(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
                if len(line) == _LONGEST_LINE:
                    raise InputError(f"{at(path, number)}: is longer than {_LONGEST_LINE} bytes; check the file")
                if line.strip():
                    with problems.catching(at(path, number)):
                        yield number, _object(line)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def object_in(path: Path) -> dict[str, Any]:
    """The single object of a small JSON file.

    Raises:
        InputError: the file does not exist or holds something else; names it.
    """
    try:
        with opened(path) as file:
            content = file.read().encode()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    try:
        return _object(content)
    except InputError as error:
        raise InputError(f"{path} {error}") from None


def parsed(model: type[_Model], values: object, where: str = "") -> _Model:
    """`values` as a `model`.

    Raises:
        InputError: a value is missing or of another type; the message begins with `where` and names the first.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(where + explain(error)) from None


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`: names come from archives, so they must not lead outside the folder.

    By the name alone. A folder that is a link to another disk is the user's own doing.

    Raises:
        InputError: `name` is empty, absolute, too long for a disk, or goes up.
    """
    path = Path(name)
    too_long = any(len(part) > _LONGEST_NAME for part in path.parts)
    if not path.name or path.is_absolute() or path.drive or ".." in path.parts or too_long:
        raise InputError(f"{name!r} names no file inside {folder}, which the corpus's own files always do; correct it")
    return folder / path


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error}); check that it is the corpus's own file") from None
    if not isinstance(value, dict):
        raise InputError(f"is a JSON {type(value).__name__}, not an object; check that it is the corpus's own file")
    return value


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist; check --root")
    return InputError(f"{path} cannot be read ({error}); check the file")
