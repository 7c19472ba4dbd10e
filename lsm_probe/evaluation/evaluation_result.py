"""An evaluation's result: the predictions of one checkpoint and their metrics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsm_probe.errors import InputError
from lsm_probe.evaluation.metrics import Floats, Metric, Score, agreement, difference, estimated, word_error_rate
from lsm_probe.evaluation.scoring import FOLLOWING, Predictions, score, truncate
from lsm_probe.evaluation.task import Task, with_read
from lsm_probe.intervals import leave_one_out, most_influential_of
from lsm_probe.runner.result import (
    Curve,
    MeasurementResult,
    curve,
    influence_sentence,
    package_versions,
    rounded,
    thinking_summary,
)


@dataclass(frozen=True)
class EvaluationConventions:
    """Choices behind the numbers: maximum response length (decoding is greedy), and how tasks parse and score."""

    max_new_tokens: int
    tasks: tuple[Task, ...]

    def to_dict(self) -> dict[str, Any]:
        tasks = {task.name: task.model_dump(mode="json", exclude_defaults=True) for task in self.tasks}
        return {"decoding": "greedy", "max_new_tokens": self.max_new_tokens, "tasks": tasks}


_PACKAGES = ("jiwer", "sacrebleu", "whisper-normalizer", "langcodes", "language-data")
"""Packages that scores depend on."""


def _versions() -> dict[str, str]:
    return package_versions() | {package: version(package) for package in _PACKAGES}


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(MeasurementResult):
    """The predictions of one checkpoint and their metrics.

    `samples` holds a row for each sample: id, task, instruction, `reference`, `response` and its ids; for a cascade
    also the `transcript`.

    Attributes:
        seconds: wall time of each sample for reading and generating, `[samples]`; the batch's time divided by its size.
    """

    NAME: ClassVar[str] = "evaluate"
    BY_SAMPLE: ClassVar[tuple[str, ...]] = ("seconds",)
    PLOT: ClassVar[str] = "lsm_probe.evaluation.plot:plot_scores"
    TABLE: ClassVar[str] = "lsm_probe.evaluation.result_table:evaluation_table"

    seconds: NDArray[np.float64]
    conventions: EvaluationConventions
    versions: dict[str, str] = field(default_factory=_versions)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.conventions.tasks

    def rescored(self, tasks: Sequence[Task], read: str | None = None) -> Self:
        """The same predictions under other definitions of the same tasks; tasks without a new definition stay the same.

        Args:
            tasks: the new definitions.
            read: which part of reasoning models' responses is scored, in all tasks; see [`Task`]. By default each
                task's own setting.

        Raises:
            InputError: a task is not in this result, or `read` is unknown.
        """
        new = {task.name: task for task in tasks}
        known = [task.name for task in self.tasks]
        for name in new.keys() - set(known):
            raise InputError(f"{self.name} has no answers to task {name}; it has: {', '.join(known)}")
        own = with_read([new.get(task.name, task) for task in self.tasks], read)
        return replace(self, conventions=replace(self.conventions, tasks=tuple(own)), versions=_versions())

    @cached_property
    def _metrics(self) -> dict[str, dict[str, Metric]]:
        return {task.name: score(Predictions(task, rows)) for task, rows, _ in self._by_task()}

    def metrics(self) -> dict[str, dict[str, Metric]]:
        """Task -> name -> metric, in the tasks' order; see [`lsm_probe.evaluation.scoring.score`]."""
        return self._metrics

    def scores(self) -> dict[str, dict[str, Score]]:
        """Task -> name -> score with its interval.

        Warns:
            UserWarning: a score is undefined.
        """
        return self._scores

    @cached_property
    def _scores(self) -> dict[str, dict[str, Score]]:
        metrics = self.metrics()
        found = {
            task.name: {name: metric.estimate(keys) for name, metric in metrics[task.name].items()}
            for task, _, keys in self._by_task()
        }
        for task, scores in found.items():
            for name, value in scores.items():
                if reason := value.details.get("undefined"):
                    warnings.warn(f"{self.name}, task {task}: {name} is undefined: {reason}", stacklevel=2)
        return found

    def following(self) -> Score | None:
        """The mean over tasks of the share of responses in the requested format; None if no task requests a format.

        Tasks whose responses cannot be checked are left out; `details['tasks']` lists the others.
        """
        rates = {name: found[FOLLOWING] for name, found in self.metrics().items() if FOLLOWING in found}
        if not rates:
            return None
        # Counts of each task in separate columns, so that an utterance is left out of all tasks at once.
        counts = np.zeros((len(self.samples), len(rates), 2))
        for i, (name, rate) in enumerate(rates.items()):
            counts[self._own(name), i] = rate.counts
        known = counts.any((1, 2))
        clusters = np.unique(self.clusters[known], return_inverse=True)[1]
        first = next(iter(rates.values()))
        by_task = first.score(leave_one_out(counts[known], clusters)) if known.any() else np.zeros((0, len(rates)))
        left_out = _mean_of_known(by_task.T)
        value = float(_mean_of_known(np.array([rate.value for rate in rates.values()])))
        details = {"tasks": [name for name, rate in rates.items() if rate.n]}
        return estimated(first, value, left_out, sum(rate.n for rate in rates.values()), details)

    def influence_notes(self) -> list[str]:
        """A sentence for each score that is decided by a single outlying utterance; shares of samples have none."""
        notes = []
        for task, rows, keys in self._by_task():
            for name, metric in self.metrics()[task.name].items():
                counting = [key for key, counts in zip(keys, metric.counting, strict=True) if counts]
                if metric.is_share or not counting:
                    continue
                found = most_influential_of(metric.value, metric.leave_one_out(keys))
                key = list(dict.fromkeys(counting))[found.cluster]
                ids = [row["id"] for row, own in zip(rows, keys, strict=True) if own == key]
                notes.append(influence_sentence(f"{name} of {task.name}", found, ids, digits=1))
        return [note for note in notes if note]

    def headline(self) -> str:
        found = [(task.name, next(iter(self.scores().get(task.name, {}).values()), None)) for task in self.tasks]
        return "; ".join(f"{task} {score}" for task, score in found[:3] if score is not None)

    def to_frame(self) -> pd.DataFrame:
        """A row for each task and metric: checkpoint, task, metric, value, ci_low, ci_high, n and its convention."""
        columns = ("value", "ci_low", "ci_high", "n", "convention")
        return pd.DataFrame(
            [
                {"checkpoint": self.name, "task": task, "metric": name, **{c: getattr(found, c) for c in columns}}
                for task, scores in self.scores().items()
                for name, found in scores.items()
            ]
        )

    def summary(self) -> dict[str, Any]:
        return {
            "tasks": {
                task.name: {
                    "title": task.title,
                    "metrics": {name: found.to_dict() for name, found in self.scores()[task.name].items()},
                    "empty_responses": sum(not row["response"] for row in rows),
                    # A response that ended by itself exactly at the maximum length also counts.
                    "cut_responses": sum(len(row["response_ids"]) >= self.conventions.max_new_tokens for row in rows),
                    "scored_in_part": Predictions(task, rows).truncated_ids,
                    **({"thinking": thinking} if (thinking := thinking_summary(rows)) else {}),
                    **self._transcript_errors(rows, keys),
                }
                for task, rows, keys in self._by_task()
            },
            "following_rate": None if (following := self.following()) is None else following.to_dict(),
            "seconds_per_sample": rounded(self.seconds.mean()),
        }

    def differences(self, other: Self) -> dict[str, Any]:
        """`other` minus this one, in percentage points; agreement of responses; relative speed of `other`."""
        theirs = other.metrics()
        pairs = {
            task.name: {
                name: difference(metric, theirs[task.name][name], keys).to_dict()
                for name, metric in self.metrics()[task.name].items()
            }
            for task, _, keys in self._by_task()
        }
        return {
            "differences": pairs,
            "agreement": {name: found.to_dict() for name, found in self.agreement(other).items()},
            "speed_ratio": self.speed_ratio(other).to_dict(),
        }

    def agreement(self, other: Self) -> dict[str, Score]:
        """Task -> share of responses that are equal in both; `other` holds the same samples in order."""
        return {
            task.name: agreement(Predictions(other_task, theirs).responses, Predictions(task, rows).responses).estimate(
                keys
            )
            for (task, rows, keys), (other_task, theirs, _) in zip(self._by_task(), other._by_task(), strict=True)
        }

    def drift_from(self, reference: Self) -> dict[str, Any]:
        """Nothing: scores are determined by the responses, which are the same."""
        return {}

    def warning(self, other: Self, controls: Sequence[str] = ()) -> str | None:
        return None

    def speed_ratio(self, other: Self) -> Curve:
        """Speed of `other` relative to this result; both hold the same samples in order, measured on one machine.

        The interval is over utterances; it does not include variation from other load on the machine.
        """
        left_out = self.leave_one_out(self.seconds) / self.leave_one_out(other.seconds)
        return curve(np.array(self.seconds.sum() / other.seconds.sum()), left_out).clipped(0, np.inf)

    def _by_task(self) -> Iterator[tuple[Task, list[dict[str, Any]], list[str]]]:
        """Each task with its rows, and the utterance of each row."""
        for task in self.tasks:
            own = self._own(task.name)
            if own:  # all of them may have been left out
                yield task, [self.samples[i] for i in own], [str(self.clusters[i]) for i in own]

    def _own(self, task: str) -> list[int]:
        return [i for i, row in enumerate(self.samples) if row["task"] == task]

    def _transcript_errors(self, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
        """The word error rate of a cascade's transcripts, if the true transcripts are known."""
        known = [i for i, row in enumerate(rows) if "transcript" in row and "text" in row]
        if not known:
            return {}
        texts, transcripts = ([truncate(rows[i][key]) for i in known] for key in ("text", "transcript"))
        languages = [rows[i].get("language") for i in known]
        found = word_error_rate(texts, transcripts, languages, ids=[rows[i]["id"] for i in known])
        return {"transcripts": found.estimate([keys[i] for i in known]).to_dict()}

    @classmethod
    def _fields(cls, arrays: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
        conventions = summary["conventions"]
        tasks = tuple(Task.model_validate({"name": name, **task}) for name, task in conventions["tasks"].items())
        return {**arrays, "conventions": EvaluationConventions(conventions["max_new_tokens"], tasks)}


def _mean_of_known(values: Floats) -> Floats:
    """The mean over the first axis without NaN; NaN if there are no other values."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
