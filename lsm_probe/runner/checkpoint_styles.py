"""Styles of checkpoints: each has one colour, marker and short label in all figures that are shown together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType

from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.labels import checkpoint_labels, path_tails
from lsm_probe.runner.result import MeasurementResult

COLORS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9", "#fbafe4", "#ece133")
"""seaborn's palette `colorblind` without its grey, the two colours that are hard to see on white last."""
MARKERS = "osD^vPX<>"
"""One for each colour, so that curves can be distinguished without their colours."""
_RESERVED = {"untrained": 0, "vanilla_asr": 1, "true_answers": 2, "self_powered_one": 3, "self_powered": 4}
"""Colour numbers of the built-in checkpoints and of the other study arms."""
_RESERVED |= {"vanilla": 1, "four_tasks": 2, "one_instruction": 3}
"""The same study arms under other names."""


@dataclass(frozen=True)
class CheckpointStyle:
    """Colour and marker of a checkpoint."""

    color: str
    marker: str

    @classmethod
    def from_number(cls, number: int) -> CheckpointStyle:
        """The style with this number; when the colours run out, they repeat with other markers."""
        return cls(COLORS[number % len(COLORS)], MARKERS[(number + number // len(COLORS)) % len(MARKERS)])


NEUTRAL = CheckpointStyle("#4d4d4d", "*")
"""The style of the base LLM: dark grey, which a page shows in its text colour."""


_shared: ContextVar[Mapping[str, CheckpointStyle]] = ContextVar("shared", default=MappingProxyType({}))
"""Styles by checkpoint name, for all figures that are shown together."""


def assign_styles(checkpoints: Iterable[CheckpointIdentity]) -> dict[str, CheckpointStyle]:
    """Choose a style for each checkpoint; the keys are their names.

    The first text LLM is grey. The built-in checkpoints have fixed colours, so that they are the same in every report;
    all seeds of a study arm have its colour. The other checkpoints take the remaining colours in the order given. A
    length-matched control has the style of the checkpoint whose source lengths it uses.
    """
    found: dict[str, CheckpointStyle] = {}
    checkpoints = list(checkpoints)
    plain = [each for each in checkpoints if each.control is None]
    base = next((each.name for each in plain if each.source == "text"), None)
    names = [name for name in dict.fromkeys(each.name for each in plain) if name != base]
    taken: set[int] = set()
    for name in names:
        reserved = _RESERVED.get(_arm(name))
        if reserved is not None:
            number = next(number for number in count(reserved, len(COLORS)) if number not in taken)
            taken.add(number)
            found[name] = CheckpointStyle.from_number(number)
    free = (number for number in count() if number not in taken)
    found |= {name: CheckpointStyle.from_number(next(free)) for name in names if name not in found}
    if base is not None:
        found[base] = NEUTRAL
    for each in checkpoints:
        if each.control is not None:
            found[each.name] = found.get(next(iter(each.control.source_length_of), ""), NEUTRAL)
    return found


@contextmanager
def shared_styles(checkpoints: Iterable[CheckpointIdentity]) -> Iterator[Mapping[str, CheckpointStyle]]:
    """In this block, draw all figures with one style for each of these checkpoints, and with their names unchanged."""
    styles = assign_styles(checkpoints)
    token = _shared.set(styles)
    try:
        yield styles
    finally:
        _shared.reset(token)


def set_shared_styles(checkpoints: Iterable[CheckpointIdentity]) -> None:
    """From now on, draw all figures with one style for each of these checkpoints: [`shared_styles`] without a block."""
    _shared.set(assign_styles(checkpoints))


def result_styles(results: Sequence[MeasurementResult]) -> list[CheckpointStyle]:
    """The style of each result's checkpoint: the one from the enclosing [`shared_styles`], else chosen by order."""
    styles = assign_styles(result.checkpoint for result in results)
    if _are_known(results):
        styles |= _shared.get()
    return [styles[result.name] for result in results]


def result_labels(results: Sequence[MeasurementResult], longest: int = 60) -> list[str]:
    """Short names of the results' checkpoints for legends and titles, all different.

    A path is cut to its shortest unique end. Within [`shared_styles`] the names are already short.
    """
    names = [result.name for result in results] if _are_known(results) else short_names(r.checkpoint for r in results)
    return checkpoint_labels(names, longest)


def short_names(checkpoints: Iterable[CheckpointIdentity]) -> list[str]:
    """The name of each checkpoint, with paths cut to their shortest unique ends."""
    checkpoints = list(checkpoints)
    tails = path_tails(list(dict.fromkeys(part for each in checkpoints for part in _parts(each))))
    names = []
    for each in checkpoints:
        joint = " at length of " if each.control else " + "
        names.append(joint.join(tails[part] for part in _parts(each)[:2]))
    return names


def _parts(checkpoint: CheckpointIdentity) -> Sequence[str]:
    """The names that a checkpoint's own name is composed of."""
    if (control := checkpoint.control) is not None:
        return control.control_of, *control.source_length_of
    return checkpoint.parts


def _arm(name: str) -> str:
    """The study arm that a name refers to: the name without `builtin:`, `open_` and the number of the seed."""
    return re.sub(r"^open_|-\d+$", "", name.removeprefix("builtin:").removesuffix("/model").rpartition("/")[2])


def _are_known(results: Sequence[MeasurementResult]) -> bool:
    shared = _shared.get()
    return bool(shared) and all(result.name in shared for result in results)
