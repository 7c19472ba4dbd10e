"""One utterance of a corpus, before any instruction: its text, its audio, and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lsm_probe.errors import InputError


@dataclass(frozen=True)
class Utterance:
    """What a corpus reader yields."""

    id: str  # unique in its split
    split: str  # the corpus's own name of its split, for example "test-clean"
    text: str | None  # the transcript; None if the corpus has none
    audio: Path | None = None  # the sound file; None if the text is not yet spoken
    start: float = 0.0  # where the utterance begins in `audio`, seconds
    duration: float | None = None  # its length, seconds; None reads to the end
    language: str | None = "en"  # of the speech, a code as of [`lsm_probe.languages.Language`]; None if unknown
    target_language: str | None = None  # English name of the language of `answers["translation"]`
    context: str | None = None  # further text that the question is about
    # Task -> right answer, for the tasks of the corpus; transcription is always possible.
    answers: dict[str, str] = field(default_factory=dict)
    alternatives: dict[str, tuple[str, ...]] = field(default_factory=dict)  # task -> further right answers

    def __post_init__(self) -> None:
        """Raises InputError if id or split is not Unicode text, as JSON may hold."""
        for name in (self.id, self.split):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"the id {name!r} holds an unpaired surrogate, which is not valid Unicode; correct it"
                ) from None

    @property
    def place(self) -> str:
        """Its name in messages."""
        return f"{self.split}, {self.id}" if self.split else self.id

    def answer(self, task: str) -> str | None:
        """The right answer to a task, or None: the transcript for "transcription"."""
        return self.text if task == "transcription" else self.answers.get(task)


def label_answer(label: str) -> str:
    """The right answer to an instruction that asks for a label: `{'joy'}`."""
    return "{" + repr(label) + "}"


def keywords_answer(keywords: Sequence[str]) -> str:
    """The right answer to an instruction that asks for keywords: `['kitchen', 'turn on']`."""
    return repr(list(keywords))
