"""WebGLM-QA: JSONL of `question`, `answer` and a list `references`."""

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
    """The references, a line each, are the context; the answer keeps its marks `[1]`, which cite them by number."""
    return read_questions(root, problems, wanted, "webqa", _answer)


def _answer(values: dict[str, Any]) -> tuple[list[str], str | None]:
    references = values.get("references")
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        raise InputError("'references' must be a list of texts; correct the line")
    return [text_in(values, "answer")], "\n".join(references)
