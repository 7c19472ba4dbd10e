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
    """Of several right answers the first is taken: a target is one text, and nobody would say all."""
    return read_questions(root, problems, wanted, "question-answering", _answer)


def _answer(values: dict[str, Any]) -> tuple[str, str | None]:
    answers = values.get("answer", values.get("answers"))
    first = answers[0] if isinstance(answers, list) and answers else answers
    if not isinstance(first, str) or not first.strip():
        raise InputError("'answer' must be a text or a list of texts; mend the line")
    return first, None
