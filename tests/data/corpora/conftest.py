"""What the tests of the corpora share: each builds its corpus in the corpus's own on-disk layout."""

from pathlib import Path

import pytest
import soundfile

from lsm_probe.data.corpora import CORPORA
from lsm_probe.data.problems import Problems


@pytest.fixture
def clip(waveform):
    """`clip(path, seconds=0.5)` writes a sound file; format and folders follow from the path."""

    def write(path, seconds=0.5):
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {".opus": "OGG"}.get(path.suffix)
        soundfile.write(path, waveform(seconds), 16_000, format=form, subtype="OPUS" if form else None)
        return path

    return write


@pytest.fixture
def read():
    """`read(name, root, splits=None)`: the utterances of a corpus and the lines of its problems."""

    def run(name, root, splits=None):
        problems = Problems()
        return list(CORPORA[name].read(Path(root), problems, splits)), problems.found

    return run


@pytest.fixture
def write():
    """`write(path, *lines)`: a text file."""

    def run(path, *lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return run
