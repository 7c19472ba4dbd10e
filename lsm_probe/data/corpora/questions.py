"""Question sets: JSONL or JSONL.gz, one question a line, whose text has yet to be spoken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lsm_probe.data.corpora.tables import Wanted, at, objects_of
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError
from lsm_probe.files import plain_name

Parse = Callable[[dict[str, Any]], tuple[list[str], str | None]]
"""A line's right answers, the first of which is the target, and its context."""


def read_questions(file: Path, problems: Problems, wanted: Wanted, task: str, parse: Parse) -> Iterator[Utterance]:
    """The questions as a split of the file's name, with ids of its name and the line: `dev-17`."""
    split = plain_name(file.name.removesuffix(".gz").removesuffix(".jsonl"))
    for number, values in objects_of(file, problems) if wanted(split) else ():
        with problems.catching(at(file, number)):
            (answer, *others), context = parse(values)
            yield Utterance(
                f"{split}-{number}",
                split,
                text_in(values, "question"),
                context=context,
                answers={task: answer},
                alternatives={task: tuple(others)} if others else {},
            )


def text_in(values: dict[str, Any], key: str) -> str:
    """A value that must be text.

    Raises:
        InputError: it is missing or something else.
    """
    value = values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key!r} must be text; check that it is the set's own file, and correct the line")
    return value
