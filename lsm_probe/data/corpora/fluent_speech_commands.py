"""Fluent Speech Commands: `data/{train,valid,test}_data.csv`, whose column `path` names clips from the root.

An intent is action and object; the location is left out, as in the paper, which makes 19 of the corpus's 31.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.labels import answer_with
from lsm_probe.data.corpora.tables import Wanted, inside, rows_of
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError

_COLUMNS = ("path", "transcription", "action", "object")


def read(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """A split for each table: "train", "valid", "test"."""
    tables = {part: root / "data" / f"{part}_data.csv" for part in ("train", "valid", "test")}
    if not any(table.exists() for table in tables.values()):
        raise InputError(f"{root} holds no data/train_data.csv, valid_data.csv or test_data.csv; check --root")
    for part, table in tables.items():
        for where, row in rows_of(table, _COLUMNS, problems) if table.exists() and wanted(part) else ():
            with problems.catching(where):
                clip = inside(root, row["path"])
                answers = answer_with("intent", f"{row['action']} {row['object']}")
                yield Utterance(clip.stem, part, row["transcription"], audio=clip, answers=answers)
