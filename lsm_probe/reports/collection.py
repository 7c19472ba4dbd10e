"""Reads result folders and groups the results by measurement, as the input of a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lsm_probe.errors import InputError
from lsm_probe.evaluation import EVALUATION, TEXT_ABILITY
from lsm_probe.probes.registry import PROBES
from lsm_probe.probes.timeline.result import Timeline
from lsm_probe.runner.identity import CheckpointIdentity, Control, cascade_name, read_schema
from lsm_probe.runner.labels import path_tails
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.result import MeasurementResult

_DEPTH = ("", "*", "*/*")
"""Patterns of the subfolders that are searched for results: a run of several checkpoints writes one folder for each."""


@cache
def measurements() -> dict[str, Measurement]:
    """All measurements by the name that their results store, in the order of the report."""
    return {each.get("result").NAME: each for each in (*PROBES.values(), EVALUATION, TEXT_ABILITY)}


class Stored(NamedTuple):
    """A result and the folder it was read from."""

    folder: Path
    result: Any


@dataclass(frozen=True)
class StoredTimeline:
    """A timeline: `summary` is the content of `timeline.json`, `page` that of `timeline.html`."""

    folder: Path
    checkpoint: CheckpointIdentity
    summary: dict[str, Any]
    page: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results by measurement; checkpoints in the order of the first measurement, controls last.

    Each checkpoint has one short name, whatever paths it was measured under. The results of a measurement are an
    attribute with its name: `results.attention`, `results.text_ability`.

    Attributes:
        groups: name of a measurement -> its results.
        own_words: sensitivity on each checkpoint's own responses, if `sensitivity` holds that on shared responses.
        timelines: pages of single utterances.
        full_names: short name -> the names that its results were stored under.
        folders: the folders that were read, in the order given.
    """

    groups: dict[str, list[Any]]
    own_words: list[Any]
    timelines: list[StoredTimeline]
    full_names: dict[str, list[str]]
    folders: list[Path]

    def __getattr__(self, name: str) -> list[Any]:
        try:
            return self.__dict__["groups"]["evaluate" if name == "evaluation" else name]
        except KeyError:
            raise AttributeError(f"there is no measurement {name!r}") from None

    def checkpoints(self) -> list[CheckpointIdentity]:
        """All checkpoints, each once, controls last."""
        results = [result for group in (*self.groups.values(), self.own_words) for result in group]
        known = {
            each.name: each for each in (*(r.checkpoint for r in results), *(t.checkpoint for t in self.timelines))
        }
        return sorted(known.values(), key=lambda each: each.control is not None)

    def measured(self) -> Iterator[tuple[Measurement, list[Any]]]:
        """Each measurement that has results, together with these."""
        for name, results in self.groups.items():
            if results:
                yield measurements()[name], results


def read_results(paths: Iterable[str | Path]) -> Results:
    """Reads the output of probes, evaluations and timelines.

    Args:
        paths: folders of results, or folders that contain them up to two levels below.

    Raises:
        InputError: a folder holds no result, a result cannot be read, two results are of the same checkpoint and probe,
            results of a probe have different data or conventions, or one name is used for different weights.
    """
    given = [Path(path) for path in paths]
    folders = list(dict.fromkeys(folder for path in given for folder in _folders(path)))
    stored = [_load(folder) for folder in folders if (folder / "result.json").exists()]
    timelines = [_load_timeline(folder) for folder in folders if (folder / "timeline.json").exists()]
    identities = [*(item.result.checkpoint for item in stored), *(timeline.checkpoint for timeline in timelines)]
    rename = _short_names(identities)
    groups: dict[str, list[Stored]] = {name: [] for name in (*measurements(), "own words")}
    for item in stored:
        renamed = replace(item.result, checkpoint=rename(item.result.checkpoint))
        groups[item.result.NAME].append(Stored(item.folder, renamed))
    own = own_responses({name: [item.result for item in group] for name, group in groups.items()})
    groups["sensitivity"], groups["own words"] = _split_own_words(groups["sensitivity"], own)
    for name, group in groups.items():
        _check(name, group)
    # Checkpoints have one order everywhere, controls last, so that each has one colour.
    order = list(dict.fromkeys(item.result.name for group in groups.values() for item in group))
    for group in groups.values():
        group.sort(key=lambda item: (item.result.is_control, order.index(item.result.name)))
    full: dict[str, list[str]] = {}
    for name, short in {identity.name: rename(identity).name for identity in identities}.items():
        full.setdefault(short, []).append(name)
    own_words = groups.pop("own words")
    return Results(
        groups={name: [item.result for item in group] for name, group in groups.items()},
        own_words=[item.result for item in own_words],
        timelines=[replace(each, checkpoint=rename(each.checkpoint)) for each in timelines],
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
        if not any(part.startswith(".") for part in file.relative_to(path).parts)  # results that a later run replaced
    }
    if not found:
        raise InputError(
            f"{path} holds no result: neither it nor a folder up to two levels below has a result.json or a "
            "timeline.json"
        )
    yield from sorted(found, key=lambda folder: (folder.parent, _place(folder)))


def _place(folder: Path) -> int:
    """Position of a result among those beside it, from `comparison.json`."""
    try:
        content = json.loads((folder.parent / "comparison.json").read_text(encoding="utf-8"))
        name = json.loads((folder / "result.json").read_text(encoding="utf-8"))["checkpoint"]["name"]
        order = [content["pairs"][0]["first"], *(pair["second"] for pair in content["pairs"])]
        return order.index(name)
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _load(folder: Path) -> Stored:
    try:
        schema = json.loads((folder / "result.json").read_text(encoding="utf-8"))["schema"]
        kind: type[MeasurementResult] = measurements()[read_schema(schema)[0]].get("result")
    except (OSError, ValueError, LookupError, TypeError, InputError) as error:
        raise InputError(
            f"{folder}/result.json is not a result that a report can show ({' '.join(str(error).split())}); it shows "
            f"results of: {', '.join(measurements())}"
        ) from error
    return Stored(folder, kind.load(folder))


def _load_timeline(folder: Path) -> StoredTimeline:
    try:
        summary = json.loads((folder / "timeline.json").read_text(encoding="utf-8"))
        if summary["schema"] != Timeline.SCHEMA:
            raise ValueError(f"schema {summary['schema']!r}, not {Timeline.SCHEMA!r}")
        page = (folder / "timeline.html").read_text(encoding="utf-8")
        return StoredTimeline(folder, CheckpointIdentity.from_dict(summary["checkpoint"]), summary, page)
    except (OSError, ValueError, LookupError, TypeError, InputError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} holds no readable timeline (timeline.json, timeline.html): {reason}") from error


Responses = Mapping[str, Sequence[Sequence[int]]]
"""Sample id -> token ids of a checkpoint's responses to the sample, one response for each run."""


def own_responses(groups: Mapping[str, Sequence[Any]]) -> dict[str, Responses]:
    """Checkpoint -> the responses that the checkpoint itself generated.

    Args:
        groups: name of a measurement -> its results.
    """
    found: dict[str, dict[str, list[list[int]]]] = {}
    for name in ("attention", "sensitivity", "own words", "knockout"):
        for result in groups.get(name, ()):
            if _generated(result) and not result.is_control:
                for sample, ids in result.responses().items():
                    found.setdefault(result.name, {}).setdefault(sample, []).append(ids)
    return dict(found)


def is_measured_on(result: Any, responses: Responses | None) -> bool:
    """Whether all measured responses are among these."""
    return responses is not None and all(ids in responses.get(i, ()) for i, ids in result.responses().items())


def _generated(result: Any) -> bool:
    """Whether the checkpoint itself generated the responses in this run."""
    return result.conventions.response == "generated" and result.checkpoint.responses != "given"


def _split_own_words(
    sensitivity: list[Stored], own_words: Mapping[str, Responses]
) -> tuple[list[Stored], list[Stored]]:
    """Separates results on shared responses from results on own ones, if a checkpoint has both; else all are shared.

    Responses that were stored and given again count as the checkpoint's own if it generated them in another result.
    """
    generated = {item.result.name for item in sensitivity if _generated(item.result)}

    def is_own(result: Any) -> bool:
        if _generated(result) or result.name in generated:
            return _generated(result)
        return is_measured_on(result, own_words.get(result.name))

    own = [item for item in sensitivity if is_own(item.result)]
    shared = [item for item in sensitivity if not is_own(item.result)]
    twice = {item.result.name for item in own} & {item.result.name for item in shared}
    # Results on different data cannot be shown side by side.
    differ = any(not item.result.data.is_same_as(sensitivity[0].result.data) for item in sensitivity)
    return (shared, own) if twice or (own and shared and differ) else (sensitivity, [])


def _check(name: str, group: Sequence[Stored]) -> None:
    """Refuses a group whose results cannot be shown side by side."""
    seen: dict[str, Path] = {}
    for folder, result in group:
        if result.name in seen:
            raise InputError(
                f"{seen[result.name]} and {folder} are both {name} results of {result.name}: leave one out"
            )
        seen[result.name] = folder
        first = group[0]
        one, other = first.result.data, result.data
        if not one.is_same_as(other):
            told = [f"{d.n_samples} samples of {d.name}, sha256 {d.sha256[:12]}" for d in (one, other)]
            raise InputError(
                f"{first.folder} and {folder} are {name} results on different data ({'; '.join(told)}): report them "
                "apart, or probe both on the same samples"
            )
        if result.conventions != first.result.conventions:
            raise InputError(
                f"{first.folder} and {folder} are {name} results with different conventions: write a report for each"
            )


def _short_names(checkpoints: Sequence[CheckpointIdentity]) -> Callable[[CheckpointIdentity], CheckpointIdentity]:
    """A function that maps a checkpoint to its short name: the shortest unique end of its path.

    Checkpoints with the same weights have one name.

    Raises:
        InputError: one name is used for different weights.
    """
    weights: dict[str, str | None] = {}
    for checkpoint in checkpoints:
        name, hashes = checkpoint.name, checkpoint.weights_sha256
        if checkpoint.control or checkpoint.cascade_of:
            continue
        own = json.dumps(hashes, sort_keys=True) if hashes else None
        weights[name] = weights.get(name) or own
        if own not in (None, weights[name]):
            raise InputError(
                f"{name} has other weights in one result than in another: measure it again, or leave one out"
            )
    first: dict[str, str] = {}
    plain = {name: first.setdefault(own or name, name) for name, own in weights.items()}
    tails = path_tails(list(dict.fromkeys(plain.values())))
    short = {name: tails[same] for name, same in plain.items()}

    def rename(checkpoint: CheckpointIdentity) -> CheckpointIdentity:
        if (control := checkpoint.control) is not None:
            llm, *lengths = [short.get(name, name) for name in (control.control_of, *control.source_length_of)]
            control = Control(llm, tuple(lengths))
            return replace(checkpoint, name=control.name, control=control)
        if checkpoint.cascade_of is not None:
            recogniser, llm = (short.get(name, name) for name in checkpoint.cascade_of)
            return replace(checkpoint, name=cascade_name(recogniser, llm), cascade_of=(recogniser, llm))
        return replace(checkpoint, name=short[checkpoint.name])

    return rename
