"""Snips' spoken language understanding sets: what was said in `dataset.json`, who said it in `speech_corpus/`.

`dataset.json` holds `intents: {name: {utterances: [{data: [{text, slot_name?}, ...]}]}}`; the chunks of an utterance,
joined, are its text. `speech_corpus/metadata.json` holds `{key: {text, filename, ...}}` for `speech_corpus/audio/`.
The two are joined by the text, as the set's own handler does; some queries were never recorded. All is one split,
"all": the sets are for cross validation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lsm_probe.data.answers import keywords_answer
from lsm_probe.data.corpora.tables import Wanted, inside, object_in, parsed
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError
from lsm_probe.languages import require_language

Keywords = Callable[[str, str, dict[str, str]], list[str] | None]
"""(text, intent, slot name -> its words) to keywords, or None for an utterance that is not of the task."""


class _Chunk(BaseModel):
    text: str
    slot_name: str | None = None


class _Query(BaseModel):
    data: list[_Chunk]


class _Intent(BaseModel):
    utterances: list[_Query]


class _Dataset(BaseModel):
    language: str = "en"
    intents: dict[str, _Intent]


class _Recording(BaseModel):
    text: str
    filename: str


def read_snips(root: Path, problems: Problems, wanted: Wanted, task: str, keywords: Keywords) -> Iterator[Utterance]:
    """Every recording that belongs to the task; how many do not is said at the end."""
    if not wanted("all"):
        return
    dataset = _dataset(root / "dataset.json")
    language = require_language(dataset.language, f"{root / 'dataset.json'}: language ").code
    queries, others = _queries(dataset), 0
    metadata = root / "speech_corpus" / "metadata.json"
    for key, values in object_in(metadata).items():
        with problems.catching(f"{metadata}, entry {key!r}"):
            recording = parsed(_Recording, values)
            clip = inside(root / "speech_corpus" / "audio", recording.filename)
            if recording.text not in queries:
                raise InputError(f"{recording.text!r} is no utterance of {root / 'dataset.json'}; unpack both again")
            intent, slots = queries[recording.text]
            found = keywords(recording.text, intent, slots)
            if found is None:
                others += 1
            else:
                answers = {task: keywords_answer(found)}
                yield Utterance(key, "all", recording.text, audio=clip, language=language, answers=answers)
    if others:
        warnings.warn(
            f"{others} recordings of {root} are not of task {task!r}: other keywords, or more or fewer than it takes",
            stacklevel=2,
        )


def _dataset(path: Path) -> _Dataset:
    content: Any = object_in(path)
    try:
        return parsed(_Dataset, content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _queries(dataset: _Dataset) -> dict[str, tuple[str, dict[str, str]]]:
    """Text to (intent, slots)."""
    return {
        "".join(chunk.text for chunk in query.data): (
            name,
            {chunk.slot_name: chunk.text for chunk in query.data if chunk.slot_name},
        )
        for name, intent in dataset.intents.items()
        for query in intent.utterances
    }
