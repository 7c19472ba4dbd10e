"""Corpora in their own on-disk layouts: a module each, with one function `read(root, problems)`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


@dataclass(frozen=True)
class Corpus:
    """A corpus that can be turned into manifests.

    Attributes:
        module: of this package, the one that reads it.
        title: its name as people write it.
        root: what `--root` must be.
        tasks: what its labels can be asked for, the paper's task first. The names are those of the instruction pools.
        spoken: False for a question set, whose text has yet to be spoken.
    """

    module: str
    title: str
    root: str
    tasks: tuple[str, ...]
    spoken: bool = True

    def read(self, root: Path, problems: Problems) -> Iterator[Utterance]:
        """Yields the corpus's utterances in its own order; what cannot be used goes into `problems`.

        Sound files are named, not opened.

        Raises:
            InputError: `root` does not hold the corpus.
        """
        if not root.exists():
            raise InputError(f"--root {root} does not exist; give {self.root}")
        reader = import_module(f"{__name__}.{self.module}")
        utterances: Iterator[Utterance] = reader.read(root, problems)
        return utterances


CORPORA = {
    "ljspeech": Corpus(
        module="ljspeech",
        title="LJSpeech 1.1",
        root="the folder with metadata.csv and wavs/",
        tasks=("transcription",),
    ),
}
