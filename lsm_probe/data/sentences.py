"""Sentences for synthesis: a text file with one per line, or JSONL rows that may have their own instructions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lsm_probe.data.build import to_sample
from lsm_probe.data.manifest import explain, warn_of_unknown_keys
from lsm_probe.data.pools import Pool
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import LanguageText, Sample, Text, Words
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError
from lsm_probe.files import plain_name, regular_file_bytes
from lsm_probe.formats import RepeatedKey, load_json

_TASK = "transcription"
_NOT_TEXT = {".json", ".gz", ".zip", ".csv", ".tsv", ".yaml", ".docx", ".pdf"}
"""Suffixes of files whose lines are not sentences; they are refused, as any text would be spoken."""


class _Row(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    text: Words
    id: Words | None = None
    instruction: Words | None = None
    target: Text | None = None
    task: Text | None = None
    language: LanguageText | None = None
    context: Text | None = None

    @model_validator(mode="after")
    def _has_instruction_for_its_target(self) -> _Row:
        if self.instruction is None and (self.target is not None or self.task is not None):
            raise ValueError("brings a 'target' or 'task' without an 'instruction'; add it, or leave both out")
        return self


@dataclass(frozen=True)
class Sentence:
    """A text for synthesis and the instruction about it."""

    utterance: Utterance  # id, text, language and context; no audio yet
    instruction: str | None = None  # None for a transcription instruction of a pool
    target: str | None = None  # the right answer to `instruction`
    task: str | None = None

    def sample(self, audio: Path | None, pool: Pool, seed: int) -> Sample:
        """The sample; without its own instruction, one for transcription is drawn, with the text as target."""
        utterance = replace(self.utterance, audio=audio)
        if self.instruction is not None:
            return to_sample(utterance, self.instruction, self.target, self.task)
        instruction = pool.only([_TASK]).assign(seed, utterance.id).instruction
        return to_sample(utterance, instruction, utterance.text, _TASK)


def read_sentences(path: Path, problems: Problems) -> Iterator[Sentence]:
    """Yields the sentences of a file; unusable lines are recorded in `problems`.

    A file name that ends in `.jsonl` is read as JSON, one object per line, with `text` and optionally `id`,
    `instruction`, `target`, `task`, `language` and `context`; any other as plain text. Blank lines are skipped. A line
    without an id is named `<file>-<line number>`.

    Raises:
        InputError: the file cannot be read.

    Warns:
        UserWarning: rows have other keys; these are left out.
    """
    unknown: dict[str, int] = {}  # key -> the line where it first occurs
    line_of: dict[str, int] = {}
    for number, line in _lines(path):
        with problems.catching(f"{path}, line {number}"):
            row = _parse(line, is_json=path.suffix == ".jsonl")
            for key in row.model_extra or {}:
                unknown.setdefault(key, number)
            name = row.id or f"{plain_name(path.stem)}-{number:06}"
            utterance = Utterance(name, "", row.text.strip(), language=row.language or "en", context=row.context)
            if name in line_of:
                raise InputError(f"line {line_of[name]} has the same id {name!r}; ids must be unique")
            line_of[name] = number
            yield Sentence(utterance, row.instruction, row.target, row.task)
    warn_of_unknown_keys(path, unknown)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, without a byte order mark."""
    regular_file_bytes(path)
    if path.suffix.lower() in _NOT_TEXT:
        raise InputError(f"{path} is neither a text file nor .jsonl; convert it to one of them")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line := line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file") from None


def _parse(line: bytes, *, is_json: bool) -> _Row:
    try:
        row = _Row.model_validate_json(line) if is_json else _Row(text=line.decode())
        if is_json:
            load_json(line)  # pydantic takes the last of repeated keys
        return row
    except RepeatedKey as error:
        raise InputError(f"is ambiguous: {error}; keep one of them") from None
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except ValidationError as error:
        raise InputError(explain(error)) from None
