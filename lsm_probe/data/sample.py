"""One sample: an instruction together with speech, a transcript, or both."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.errors import InputError
from lsm_probe.languages import find_language

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Two letters at least, so that a Windows drive ("C:\\...") is not taken for a scheme.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON may hold half a surrogate pair ("\ud800"), which no tokenizer and no UTF-8 file takes.
        raise ValueError("holds an unpaired surrogate, which is not valid Unicode; save the file as UTF-8") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty or blank; fill it in or leave the key out")
    return text


def _plain_path(value: object) -> object:
    """Refuses everything except audio in memory and the path of a local file: other readers run commands and fetch
    URLs."""
    if value is None or isinstance(value, AudioBytes):
        return value
    if not isinstance(value, str | Path):
        raise ValueError(f"must be a plain path in a string, not {type(value).__name__}; name a local file")
    path = _not_blank(_encodable(str(value)))
    if path.strip().startswith("|") or path.strip().endswith("|"):
        raise ValueError(f"{path!r} is a command (pipe), which is not run; name a local file")
    if _SCHEME.match(path.strip()):
        raise ValueError(f"{path!r} is a URL, which is not fetched; name a local file")
    if "\0" in path:
        raise ValueError(f"{path!r} holds a NUL character; name a local file")
    return value


def _is_language(spelling: str) -> str:
    try:
        find_language(spelling)
    except InputError as error:
        raise ValueError(str(error)) from None
    return spelling


def _audio_in_json(audio: Path | AudioBytes | None) -> str | None:
    if isinstance(audio, AudioBytes):
        return f"sha256:{audio.sha256}"  # records which audio it was; it cannot be read back
    return None if audio is None else str(audio)


Text = Annotated[str, AfterValidator(_encodable)]
Words = Annotated[Text, AfterValidator(_not_blank)]
LanguageText = Annotated[Text, AfterValidator(_is_language)]
# Strict: a number, not a string or a boolean that looks like a number.
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Sample(BaseModel):
    """An instruction and its source. Immutable.

    Args:
        id: Name of the sample, unique in its manifest.
        instruction: The text instruction.
        audio: A local sound file, or one in memory ([`lsm_probe.samples`] makes these). `audio` or `text` is required.
        text: The transcript.
        target: The reference response.
        alternatives: Further right answers, which evaluation also accepts.
        start: Where the section begins in `audio`, seconds.
        duration: Length of the section, seconds; None reads to the end.
        task: Name of the task, for example "asr".
        language: Language of the speech, in any spelling that [`lsm_probe.languages.find_language`] knows.
        context: Further text for the prompt.

    Raises:
        pydantic.ValidationError: A value is missing, blank, not finite or out of range, or `audio` is
            anything but a plain path or audio in memory. The code that reads the file checks that it exists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    id: Words
    instruction: Words
    audio: Annotated[
        Path | AudioBytes | None,
        BeforeValidator(_plain_path),
        PlainSerializer(_audio_in_json, when_used="json-unless-none"),
    ] = None
    text: Words | None = None
    target: Text | None = None
    alternatives: tuple[Words, ...] = ()
    start: Annotated[Seconds, Field(ge=0)] = 0.0
    duration: Annotated[Seconds, Field(gt=0)] | None = None
    task: Text | None = None
    language: LanguageText | None = None
    context: Text | None = None

    @model_validator(mode="after")
    def _has_source(self) -> "Sample":
        if self.audio is None and self.text is None:
            raise ValueError("names neither 'audio' nor 'text'; give one of them")
        return self

    @property
    def utterance(self) -> str:
        """Key of the utterance, for intervals: equal for the same file, start and duration, or for the same text if no
        audio.

        A hash, so that results can store it without the location of the file. Files are compared by their resolved
        path, audio in memory by its bytes; `duration=None` and the same length in seconds give different keys.
        """
        if self.audio is None:
            return _digest("text", self.text)
        audio = self.audio.sha256 if isinstance(self.audio, AudioBytes) else self.audio.resolve()
        return _digest("audio", audio, self.start, self.duration)

    def read_source(self, source: Literal["speech", "text"]) -> "NDArray[np.float32] | str":
        """The input for a model of this source: the waveform (mono, 16 kHz, `[samples]`), or the transcript.

        Raises:
            InputError: the sample has no such source, or its audio cannot be used; names the sample.
        """
        if source == "speech":
            from lsm_probe.data.audio import read_audio  # a manifest can be read without numpy

            return read_audio(self)
        if self.text is None:
            raise InputError(f"sample {self.id!r}: has no transcript; add 'text' to it")
        return self.text


def _digest(kind: str, *parts: object) -> str:
    return f"{kind}-{hashlib.sha256(repr(list(map(str, parts))).encode()).hexdigest()[:16]}"


@contextmanager
def naming(sample: Sample) -> Iterator[None]:
    """Puts the sample's id before the message of an InputError that the block raises."""
    try:
        yield
    except InputError as error:
        raise InputError(f"sample {sample.id!r}: {error}") from error
