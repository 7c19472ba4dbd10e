"""Snips smart lights: see `snips.py`; the root is `smart-lights-en-close-field` or `smart-lights-en-far-field`.

The paper asks for two keywords of eight and does not say how it got them. Here they come from the annotation:
`SwitchLightOn` or `SwitchLightOff` with one of the three rooms gives `['turn on', 'kitchen']`; `IncreaseBrightness` or
`DecreaseBrightness` without a room gives `['increase', 'brightness']`. All else is not of the task: other rooms, lights
switched in no room, brightness in a room (three keywords), `SetLightBrightness`, `SetLightColor`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.snips import read_snips
from lsm_probe.data.corpora.tables import Wanted
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance

_SWITCH = {"SwitchLightOn": "turn on", "SwitchLightOff": "turn off"}
_CHANGE = {"IncreaseBrightness": "increase", "DecreaseBrightness": "decrease"}
_ROOMS = ("bedroom", "kitchen", "living room")


def read(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """One split, "all", of the utterances with two keywords."""
    return read_snips(root, problems, wanted, "keywords-lights", _keywords)


def _keywords(text: str, intent: str, slots: dict[str, str]) -> list[str] | None:
    room = slots.get("room", "").strip().lower()
    if intent in _SWITCH and room in _ROOMS:
        return [_SWITCH[intent], room]
    if intent in _CHANGE and not slots:
        return [_CHANGE[intent], "brightness"]
    return None
