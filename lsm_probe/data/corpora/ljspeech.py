"""LJSpeech: `metadata.csv` of `id|text|normalised text` lines, and `wavs/<id>.wav`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.tables import Wanted, inside, lines_of
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


def read_ljspeech(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """All clips as one split, "all", with the normalised text (numbers and abbreviations spelled out)."""
    for where, line in lines_of(root / "metadata.csv") if wanted("all") else ():
        with problems.catching(where):
            fields = line.split("|")
            if len(fields) != 3:
                raise InputError(f"has {len(fields)} fields instead of id|text|normalised text; correct the line")
            name, _, text = fields
            yield Utterance(name, "all", text, audio=inside(root / "wavs", f"{name}.wav"))
