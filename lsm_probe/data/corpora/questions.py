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
"""Returns the correct answers of a line (the first is the target) and its context."""


def read_boolq(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """BoolQ: `question`, `passage` (the context) and `answer`, which is true or false."""

    def parse(values: dict[str, Any]) -> tuple[list[str], str | None]:
        if not isinstance(values.get("answer"), bool):
            raise InputError("'answer' must be true or false; correct the line")
        return [str(values["answer"]).lower()], _text_in(values, "passage")

    return _read(root, problems, wanted, "boolq", parse)


def read_webglm_qa(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """WebGLM-QA: `question`, a list `references` (the context), and `answer`, which cites these as `[1]`."""

    def parse(values: dict[str, Any]) -> tuple[list[str], str | None]:
        references = values.get("references")
        if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
            raise InputError("'references' must be a list of texts; correct the line")
        return [_text_in(values, "answer")], "\n".join(references)

    return _read(root, problems, wanted, "webqa", parse)


def read_open_questions(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """Llama Questions, Web Questions and similar sets: `question`, and `answer` or `answers`, a text or a list.

    Training needs one target, so that is the first of several right answers. Evaluation accepts any of them.
    """

    def parse(values: dict[str, Any]) -> tuple[list[str], str | None]:
        given = values.get("answer", values.get("answers"))
        answers: list[Any] = given if isinstance(given, list) else [given]
        if not answers or any(not isinstance(answer, str) or not answer.strip() for answer in answers):
            raise InputError("'answer' must be a text or a list of texts; correct the line")
        return answers, None

    return _read(root, problems, wanted, "question-answering", parse)


def _read(file: Path, problems: Problems, wanted: Wanted, task: str, parse: Parse) -> Iterator[Utterance]:
    """The questions as a split of the file's name, with ids of its name and the line: `dev-17`."""
    split = plain_name(file.name.removesuffix(".gz").removesuffix(".jsonl"))
    for number, values in objects_of(file, problems) if wanted(split) else ():
        with problems.catching(at(file, number)):
            (answer, *others), context = parse(values)
            yield Utterance(
                f"{split}-{number}",
                split,
                _text_in(values, "question"),
                context=context,
                answers={task: answer},
                alternatives={task: tuple(others)} if others else {},
            )


def _text_in(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key!r} must be text; check that it is the set's own file, and correct the line")
    return value
