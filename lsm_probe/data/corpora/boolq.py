"""BoolQ: JSONL of `question`, `passage` and `answer`, which is true or false."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsm_probe.data.corpora.questions import read_questions, text_in
from lsm_probe.data.corpora.tables import Wanted
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


def read(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """The passage is the context; the answer "true" or "false"."""
    return read_questions(root, problems, wanted, "boolq", _answer)


def _answer(values: dict[str, Any]) -> tuple[list[str], str | None]:
    if not isinstance(values.get("answer"), bool):
        raise InputError("'answer' must be true or false; correct the line")
    return [str(values["answer"]).lower()], text_in(values, "passage")
