"""Result folders, read and grouped by probe: what a report is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from lsm_probe.errors import InputError
from lsm_probe.evaluation.cascade import PLUS
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.text_ability_result import TextAbilityResult
from lsm_probe.probes.alignment.result import AlignmentResult
from lsm_probe.probes.attention.controls import CONTROL, is_control
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.probes.knockout.result import KnockoutResult
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.probes.timeline.result import Timeline
from lsm_probe.runner.result import ProbeResult

KINDS: dict[str, type[ProbeResult]] = {
    "attention": AttentionResult,
    "sensitivity": SensitivityResult,
    "knockout": KnockoutResult,
    "alignment": AlignmentResult,
    "importance": ImportanceResult,
    "evaluation": EvaluationResult,
    "text_ability": TextAbilityResult,
}
"""Attribute of [`Results`] -> what it is a list of."""
_BY_SCHEMA = {kind.SCHEMA: name for name, kind in KINDS.items()}
_DEPTH = ("", "*", "*/*")
"""How far below a folder results are looked for: a run of several checkpoints writes a folder each."""
Probed = TypeVar("Probed", bound=ProbeResult)


@dataclass(frozen=True)
class Stored(Generic[Probed]):
    """A result and the folder it was read from."""

    folder: Path
    result: Probed


@dataclass(frozen=True)
class StoredTimeline:
    """A timeline's page and what it shows.

    Attributes:
        folder: where it was read.
        checkpoint: the checkpoint's short name.
        summary: content of `timeline.json`.
        page: content of `timeline.html`.
    """

    folder: Path
    checkpoint: str
    summary: dict[str, Any]
    page: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results by probe, checkpoints in the order the attention probe measured them, then the others; controls last.

    Checkpoints carry short names, one for each, whatever paths they were measured under.

    Attributes:
        own_words: sensitivity on each checkpoint's own response, where `sensitivity` holds that on shared ones.
        full_names: short name -> the names that its results were stored under.
        folders: where everything was read, in the order given.
    """

    attention: list[AttentionResult]
    sensitivity: list[SensitivityResult]
    own_words: list[SensitivityResult]
    knockout: list[KnockoutResult]
    alignment: list[AlignmentResult]
    importance: list[ImportanceResult]
    evaluation: list[EvaluationResult]
    text_ability: list[TextAbilityResult]
    timelines: list[StoredTimeline]
    full_names: dict[str, list[str]]
    folders: list[Path]

    def of(self, probe: str) -> list[Any]:
        """The results of a probe by its name in `KINDS`."""
        found: list[Any] = getattr(self, probe)
        return found


def read_results(paths: Iterable[str | Path]) -> Results:
    """Reads what probes, evaluations and timelines wrote.

    Args:
        paths: folders of results, or folders that hold them, up to two levels below.

    Raises:
        InputError: a folder holds none, one cannot be read, two are of one checkpoint and probe, results of a probe
            were measured on different data or under different conventions, or one name stands for different weights.
    """
    given = [Path(path) for path in paths]
    folders = list(dict.fromkeys(folder for path in given for folder in _folders(path)))
    stored = [_load(folder) for folder in folders if (folder / "result.json").exists()]
    timelines = [_load_timeline(folder) for folder in folders if (folder / "timeline.json").exists()]
    checkpoints = [s.result.checkpoint for s in stored] + [t.summary["checkpoint"] for t in timelines]
    names = _short_names(checkpoints)
    groups: dict[str, list[Any]] = {name: [] for name in KINDS}
    for item in stored:
        groups[_BY_SCHEMA[item.result.SCHEMA]].append(_renamed(item, names))
    groups["sensitivity"], groups["own_words"] = _apart(groups["sensitivity"])
    for probe, group in groups.items():
        _check(probe.replace("own_words", "sensitivity"), group)
    # Checkpoints come in one order everywhere, so that each has one colour, controls last.
    order = list(dict.fromkeys(item.result.name for group in groups.values() for item in group))
    for group in groups.values():
        group.sort(key=lambda item: (is_control(item.result), order.index(item.result.name)))
    full: dict[str, list[str]] = {}
    for name, short in names.items():
        full.setdefault(short, []).append(name)
    return Results(
        **{probe: [item.result for item in group] for probe, group in groups.items()},
        timelines=[replace(t, checkpoint=names[t.checkpoint]) for t in timelines],
        full_names=full,
        folders=given,
    )


def _folders(path: Path) -> Iterator[Path]:
    """Folders of results at or below a path, in the order their checkpoints were measured."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give the output folder of a probe, an evaluation or a timeline")
    found = {
        file.parent: None
        for level in _DEPTH
        for name in ("result.json", "timeline.json")
        for file in sorted(path.glob(f"{level}/{name}" if level else name))
        if not any(part.startswith(".") for part in file.relative_to(path).parts)  # what a later run took the place of
    }
    if not found:
        raise InputError(
            f"{path} holds no result: neither it nor a folder up to two levels below has a result.json or a "
            "timeline.json"
        )
    yield from sorted(found, key=lambda folder: (folder.parent, _place(folder)))


def _place(folder: Path) -> int:
    """Where a result comes among those beside it, as `comparison.json` tells."""
    try:
        content = json.loads((folder.parent / "comparison.json").read_text(encoding="utf-8"))
        name = json.loads((folder / "result.json").read_text(encoding="utf-8"))["checkpoint"]["name"]
        order = [content["pairs"][0]["first"], *(pair["second"] for pair in content["pairs"])]
        return order.index(name)
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _load(folder: Path) -> Stored[ProbeResult]:
    try:
        schema = json.loads((folder / "result.json").read_text(encoding="utf-8"))["schema"]
        kind = KINDS[_BY_SCHEMA[schema]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder}/result.json is no result that a report can show (schema: {' '.join(str(error).split())}); "
            f"there are: {', '.join(_BY_SCHEMA)}"
        ) from error
    return Stored(folder, kind.load(folder))


def _load_timeline(folder: Path) -> StoredTimeline:
    try:
        summary = json.loads((folder / "timeline.json").read_text(encoding="utf-8"))
        if summary["schema"] != Timeline.SCHEMA:
            raise ValueError(f"schema {summary['schema']!r}, not {Timeline.SCHEMA!r}")
        page = (folder / "timeline.html").read_text(encoding="utf-8")
        return StoredTimeline(folder, str(summary["checkpoint"]["name"]), summary, page)
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} holds no readable timeline (timeline.json, timeline.html): {reason}") from error


def _apart(sensitivity: list[Stored[Any]]) -> tuple[list[Stored[Any]], list[Stored[Any]]]:
    """On shared words and on own ones, if a checkpoint was measured on both; else all are of the first kind."""
    own = [item for item in sensitivity if item.result.of_own_words]
    shared = [item for item in sensitivity if not item.result.of_own_words]
    twice = {item.result.name for item in own} & {item.result.name for item in shared}
    return (shared, own) if twice else (sensitivity, [])


def _check(probe: str, group: Sequence[Stored[ProbeResult]]) -> None:
    """Refuses a group whose results cannot be shown side by side."""
    seen: dict[str, Path] = {}
    for folder, result in ((item.folder, item.result) for item in group):
        if result.name in seen:
            raise InputError(
                f"{seen[result.name]} and {folder} are both {probe} results of {result.name}: leave one out"
            )
        seen[result.name] = folder
        first = group[0]
        one, other = first.result.data, result.data
        if any(one[what] != other[what] for what in ("sha256", "n_samples")):
            told = [f"{d['n_samples']} samples of {d['name']}, sha256 {d['sha256'][:12]}" for d in (one, other)]
            raise InputError(
                f"{first.folder} and {folder} are {probe} results on different data ({'; '.join(told)}): report them "
                "apart, or probe both on the same samples"
            )
        if result.conventions != first.result.conventions:
            raise InputError(
                f"{first.folder} and {folder} are {probe} results under different conventions: report them apart"
            )


def _renamed(item: Stored[Any], names: dict[str, str]) -> Stored[Any]:
    checkpoint = {**item.result.checkpoint, "name": names[item.result.name]}
    return replace(item, result=replace(item.result, checkpoint=checkpoint))


def _short_names(checkpoints: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Stored name -> short name: the end of its path that tells it from the others; one for the same weights."""
    weights: dict[str, str | None] = {}
    for checkpoint in checkpoints:
        name, hashes = str(checkpoint["name"]), checkpoint.get("weights_sha256")
        if any(joint in name for joint in (CONTROL, PLUS)):
            continue
        own = json.dumps(hashes, sort_keys=True) if hashes else None
        weights[name] = weights.get(name) or own
        if own not in (None, weights[name]):
            raise InputError(
                f"{name} has other weights in one result than in another: measure it again, or leave one out"
            )
    first: dict[str, str] = {}
    plain = {name: first.setdefault(own or name, name) for name, own in weights.items()}
    short = _tails(list(dict.fromkeys(plain.values())))
    return {str(c["name"]): _composed(str(c["name"]), plain, short) for c in checkpoints}


def _composed(name: str, plain: dict[str, str], short: dict[str, str]) -> str:
    """The short name of a checkpoint, of a control or of a cascade."""
    for joint in (CONTROL, PLUS):
        if joint in name:
            return joint.join(_composed(part, plain, short) for part in name.split(joint))
    return short[plain[name]] if name in plain else name


def _tails(names: Sequence[str]) -> dict[str, str]:
    """The shortest end of each path that no other one has; the last `/model`, which training writes, is left out."""
    parts = {name: [name] if name.startswith("builtin:") else _parts(name) for name in names}
    tails = {}
    for name, own in parts.items():
        others = [other for key, other in parts.items() if key != name]
        depth = next((d for d in range(1, len(own)) if all(own[-d:] != o[-d:] for o in others)), len(own))
        tails[name] = "/".join(own[-depth:])
    alike = Counter(tails.values())
    return {name: tail if alike[tail] == 1 else name for name, tail in tails.items()}


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part]
    return parts[:-1] if len(parts) > 1 and parts[-1] == "model" else parts or [name]
