"""A small closed domain of spoken commands: switch, turn up and open eight devices in eight rooms, politely or not.

The meaning of each sentence is known, so every answer can be checked. The vocabulary is small, so a small model can
learn to recognise it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count as numbers
from itertools import product
from typing import TypeVar

from lsm_probe.data.seeded_hash import seeded_hash
from lsm_probe.data.utterance import Utterance, keywords_answer, label_answer
from lsm_probe.errors import InputError

T = TypeVar("T")

TASKS = ("transcription", "intent", "keywords", "device", "place", "capitals")
"""Tasks of the instruction pool `commands`."""

PLACES = ("kitchen", "bedroom", "bathroom", "living room", "dining room", "office", "garage", "basement")

_POWERED = ("lamp", "fan", "heater", "radio", "television")
_ADJUSTABLE = ("fan", "heater", "radio", "television")
_MOVABLE = ("door", "window", "curtains")

# Action -> the verbs that ask for it, each in one or two words, and the devices that can do it.
_ACTIONS = {
    "activate": (("turn on", "switch on"), _POWERED),
    "deactivate": (("turn off", "switch off"), _POWERED),
    "increase": (("turn up",), _ADJUSTABLE),
    "decrease": (("turn down",), _ADJUSTABLE),
    "open": (("open",), _MOVABLE),
    "close": (("close", "shut"), _MOVABLE),
}
_FRAMES = (
    "{}.",
    "Please {}.",
    "{}, please.",
    "Could you {}?",
    "Could you {}, please?",
    "Can you {} for me?",
    "Would you please {}?",
    "I want you to {}.",
    "It is time to {}.",
    "Do not forget to {}.",
)
_IN_TEN = 10
"""Out of ten rounds, one is for validation and one for test."""


@dataclass(frozen=True)
class Command:
    """A sentence of this domain and its meaning."""

    text: str
    action: str  # what is to be done, for example "activate"
    verb: str  # the words that say so, for example "switch on"
    device: str
    place: str

    @property
    def intent(self) -> str:
        return f"{self.action} {self.device}"

    def answers(self) -> dict[str, str]:
        """Task -> right answer, except transcription."""
        return {
            "intent": label_answer(self.intent),
            "keywords": keywords_answer([self.verb, self.device, self.place]),
            "device": self.device,
            "place": self.place,
            "capitals": self.text.upper(),
        }


def all_commands() -> list[Command]:
    """Every sentence of the domain, each once."""
    return [command for action, device in _intents() for place in PLACES for command in _cell(action, device, place)]


def intents() -> list[str]:
    """The labels of the task intent, for example "activate lamp"."""
    return [f"{action} {device}" for action, device in _intents()]


def command_utterances(count: int, seed: int) -> list[Utterance]:
    """A balanced draw of different sentences in splits train, validation and test, 80 to 10 to 10.

    Sentences come in rounds that hold each intent once and all places equally often, until the sentences of an
    intent in a place run out. Whole rounds are given to a split, so each split has every intent and every place.

    Returns:
        Utterances without audio, ids "cmd-00001" and so on, with the answers to all of `TASKS`.

    Raises:
        InputError: there are not that many sentences, or too few are asked for to fill three splits.
    """
    fewest, most = _IN_TEN * len(intents()), len(all_commands())
    if not fewest <= count <= most:
        raise InputError(
            f"--count {count} is not between {fewest}, for each split to have every intent, and {most}, all there are"
        )
    drawn = zip(range(1, count + 1), _in_rounds(seed), strict=False)
    return [
        Utterance(id=f"cmd-{number:05}", split=_split(place, seed), text=command.text, answers=command.answers())
        for number, (place, command) in drawn
    ]


def _intents() -> list[tuple[str, str]]:
    return [(action, device) for action, (_, devices) in _ACTIONS.items() for device in devices]


def _cell(action: str, device: str, place: str) -> Iterator[Command]:
    """All ways to express one command."""
    for verb, frame in product(_ACTIONS[action][0], _FRAMES):
        for wording in _wordings(verb, device, place):
            sentence = frame.format(wording)
            yield Command(sentence[0].upper() + sentence[1:], action, verb, device, place)


def _wordings(verb: str, device: str, place: str) -> Iterator[str]:
    """Yield "turn on the kitchen lamp", and variants with other positions of "on" and the room."""
    first, _, particle = verb.partition(" ")
    yield f"{verb} the {device} in the {place}"
    yield f"{verb} the {place} {device}"
    if particle:
        yield f"{first} the {device} {particle} in the {place}"
        yield f"{first} the {place} {device} {particle}"


def _in_rounds(seed: int) -> Iterator[tuple[int, Command]]:
    """(round, command), all of them. Places move on by one from intent to intent, and from round to round."""

    asked = _shuffled(_intents(), seed, "intent")
    places = _shuffled(PLACES, seed, "place")
    cells = {
        (action, device, place): _shuffled(_cell(action, device, place), seed, "sentence")
        for (action, device), place in product(asked, places)
    }
    for turn in numbers():
        for i, (action, device) in enumerate(asked):
            if cell := cells[action, device, places[(turn + i) % len(places)]]:
                yield turn, cell.pop()
        if not any(cells.values()):
            return


def _shuffled(values: Iterable[T], seed: int, purpose: str) -> list[T]:
    return sorted(values, key=lambda value: seeded_hash(seed, purpose, str(value)))


def _split(turn: int, seed: int) -> str:
    """Drawn again for every ten rounds, so that splits do not repeat the same combinations of rooms and intents."""
    ten, one = divmod(turn, _IN_TEN)
    test = seeded_hash(seed, "test", str(ten)) % _IN_TEN
    validation = (test + 1 + seeded_hash(seed, "validation", str(ten)) % (_IN_TEN - 1)) % _IN_TEN
    return {test: "test", validation: "validation"}.get(one, "train")
