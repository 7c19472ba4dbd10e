"""Fixtures for tests of corpora; each test builds its corpus in the corpus's own layout."""

from pathlib import Path

import pytest

from lsm_probe.data.corpora import CORPORA
from lsm_probe.data.problems import Problems


@pytest.fixture
def read():
    """`read(name, root, splits=None)`: the utterances of a corpus and the lines of its problems."""

    def run(name, root, splits=None):
        problems = Problems()
        return list(CORPORA[name].read(Path(root), problems, splits)), problems.found

    return run
