"""Snips' spoken language understanding sets: what was said in `dataset.json`, who said it in `speech_corpus/`.

`dataset.json` holds `intents: {name: {utterances: [{data: [{text, slot_name?}, ...]}]}}`; the chunks of an utterance,
joined, are its text. `speech_corpus/metadata.json` holds `{key: {text, filename, ...}}` for `speech_corpus/audio/`.
The two are joined by the text, as the set's own handler does; some queries were never recorded. All is one split,
"all": the sets are for cross validation.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from lsm_probe.data.corpora.labels import labels_of
from lsm_probe.data.corpora.tables import Wanted, inside, object_in, parsed
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance, keywords_answer
from lsm_probe.errors import InputError
from lsm_probe.languages import require_language

Keywords = Callable[[str, str, dict[str, str]], list[str] | None]
"""Called with text, intent and slots (name -> words). Returns keywords, or None if the utterance is not of the task."""

_SWITCH = {"SwitchLightOn": "turn on", "SwitchLightOff": "turn off"}
_CHANGE = {"IncreaseBrightness": "increase", "DecreaseBrightness": "decrease"}
_ROOMS = ("bedroom", "kitchen", "living room")


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


def read_snips_lights(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """Snips smart lights, close or far field: the utterances with two keywords.

    The paper asks for two keywords of eight and does not say how it got them. Here they come from the annotation:
    `SwitchLightOn` or `SwitchLightOff` with one of the three rooms gives `['turn on', 'kitchen']`; `IncreaseBrightness`
    or `DecreaseBrightness` without a room gives `['increase', 'brightness']`. Other utterances do not belong to the
    task: other rooms, lights switched in no room, brightness in a room (three keywords), `SetLightBrightness` and
    `SetLightColor`.
    """

    def keywords(text: str, intent: str, slots: dict[str, str]) -> list[str] | None:
        room = slots.get("room", "").strip().lower()
        if intent in _SWITCH and room in _ROOMS:
            return [_SWITCH[intent], room]
        if intent in _CHANGE and not slots:
            return [_CHANGE[intent], "brightness"]
        return None

    return _read(root, problems, wanted, "keywords-lights", keywords)


def read_snips_washing(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """Snips washing machine: the utterances with three keywords.

    NOT VERIFIED: no public code or document that we found shows this set, its layout or its labels; the layout is that
    of Snips' other sets. The paper asks for three keywords, and prints the eight labels of the lights, surely a slip.
    We take those labels that the text contains, if there are three; expect few or no utterances under these labels.
    """
    task = "keywords-washing"

    def keywords(text: str, intent: str, slots: dict[str, str]) -> list[str] | None:
        spoken = [label for label in labels_of(task) if re.search(rf"\b{re.escape(label)}\b", text, re.IGNORECASE)]
        return spoken if len(spoken) == 3 else None

    return _read(root, problems, wanted, task, keywords)


def _read(root: Path, problems: Problems, wanted: Wanted, task: str, keywords: Keywords) -> Iterator[Utterance]:
    """Every recording that belongs to the task; a warning at the end counts the others."""
    if not wanted("all"):
        return
    path, others = root / "dataset.json", 0
    dataset = parsed(_Dataset, object_in(path), f"{path}: ")
    language = require_language(dataset.language, f"{path}: language ").code
    queries = _queries(dataset)
    metadata = root / "speech_corpus" / "metadata.json"
    for key, values in object_in(metadata).items():
        with problems.catching(f"{metadata}, entry {key!r}"):
            recording = parsed(_Recording, values)
            clip = inside(root / "speech_corpus" / "audio", recording.filename)
            if recording.text not in queries:
                raise InputError(f"{recording.text!r} is not an utterance of {path}; unpack both again")
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
