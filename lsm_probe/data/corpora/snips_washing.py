"""Snips washing machine: taken to lie on disk as `snips.py` says.

NOT VERIFIED: no public code or document that we found shows this set, its layout or its labels; the layout is that of
Snips' other sets. The paper asks for three keywords, and prints the eight labels of the lights, surely a slip. Of these
we take those that stand in the text, if they are three; under the printed labels expect few or none to be left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.labels import labels_of
from lsm_probe.data.corpora.snips import read_snips
from lsm_probe.data.corpora.tables import Wanted
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance

_TASK = "keywords-washing"


def read(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """One split, "all", of the utterances with three keywords."""
    return read_snips(root, problems, wanted, _TASK, _keywords)


def _keywords(text: str, intent: str, slots: dict[str, str]) -> list[str] | None:
    spoken = [label for label in labels_of(_TASK) if re.search(rf"\b{re.escape(label)}\b", text, re.IGNORECASE)]
    return spoken if len(spoken) == 3 else None
