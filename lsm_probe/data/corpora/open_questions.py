"""Llama Questions, Web Questions and alike: JSONL of `question`, and `answer` or `answers`, a text or a list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsm_probe.data.corpora.questions import read_questions
from lsm_probe.data.corpora.tables import Wanted
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


def read(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """Of several right answers the first is the target, one text that a model can be trained to say; any will do."""
    return read_questions(root, problems, wanted, "question-answering", _answers)


def _answers(values: dict[str, Any]) -> tuple[list[str], str | None]:
    given = values.get("answer", values.get("answers"))
    answers: list[Any] = given if isinstance(given, list) else [given]
    if not answers or any(not isinstance(answer, str) or not answer.strip() for answer in answers):
        raise InputError("'answer' must be a text or a list of texts; correct the line")
    return answers, None
