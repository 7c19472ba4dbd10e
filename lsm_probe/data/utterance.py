"""One utterance of a corpus, before any instruction: what was said, where it lies, and what is true of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lsm_probe.errors import InputError


@dataclass(frozen=True)
class Utterance:
    """What a corpus reader yields.

    Attributes:
        id: unique in its split.
        split: the corpus's own name of the part it belongs to, for example "test-clean".
        text: the transcript; None where the corpus has none.
        audio: the sound file; None where the text has yet to be spoken.
        start: where the utterance begins in `audio`, seconds.
        duration: its length, seconds; None reads to the end.
        language: code of that of the speech, see [`lsm_probe.languages.Language`]; None where it is not known.
        target_language: that `answers["translation"]` is in, by its English name.
        context: further text the question is about.
        answers: task -> right answer; a corpus's own tasks only, transcription is always possible.
        alternatives: task -> further right answers.
    """

    id: str
    split: str
    text: str | None
    audio: Path | None = None
    start: float = 0.0
    duration: float | None = None
    language: str | None = "en"
    target_language: str | None = None
    context: str | None = None
    answers: dict[str, str] = field(default_factory=dict)
    alternatives: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """
        Raises:
            InputError: id or split is no Unicode text, as JSON may hold.
        """
        for name in (self.id, self.split):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise InputError(f"the id {name!r} holds half a surrogate pair; write it as Unicode text") from None

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"{self.split}, {self.id}" if self.split else self.id

    def answer(self, task: str) -> str | None:
        """The right answer to a task, or None: the transcript for "transcription"."""
        return self.text if task == "transcription" else self.answers.get(task)
