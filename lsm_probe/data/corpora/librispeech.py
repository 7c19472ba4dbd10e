"""LibriSpeech: `<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt` of `id text` lines, `<id>.flac` beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.tables import Wanted, inside, lines_of
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


def read_librispeech(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """A split for each part. The text is the corpus's own: upper case, no punctuation."""
    transcripts = sorted(root.glob("*/*/*/*.trans.txt"))
    if not transcripts:
        raise InputError(f"{root} holds no <part>/<speaker>/<chapter>/*.trans.txt; check --root")
    for path in transcripts:
        part = path.parents[2].name
        for where, line in lines_of(path) if wanted(part) else ():
            with problems.catching(where):
                name, _, text = line.partition(" ")
                yield Utterance(name, part, text, audio=inside(path.parent, f"{name}.flac"))
