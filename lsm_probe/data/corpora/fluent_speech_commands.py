"""Fluent Speech Commands: `data/{train,valid,test}_data.csv`, whose column `path` names clips from the root.

An intent is action and object; the location is left out, as in the paper, which makes 19 of the corpus's 31.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.labels import answer_with
from lsm_probe.data.corpora.tables import Wanted, inside, rows_of_parts
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance

_COLUMNS = ("path", "transcription", "action", "object")


def read_fluent_speech_commands(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """A split for each table: "train", "valid", "test"."""
    tables = {part: f"data/{part}_data.csv" for part in ("train", "valid", "test")}
    for part, where, row in rows_of_parts(root, tables, _COLUMNS, problems, wanted):
        with problems.catching(where):
            clip = inside(root, row["path"])
            answers = answer_with("intent", f"{row['action']} {row['object']}")
            yield Utterance(clip.stem, part, row["transcription"], audio=clip, answers=answers)
