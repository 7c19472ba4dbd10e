"""The parts of evidence: a number with its interval, its distance from a threshold, and the verdicts it supports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsm_probe.diagnosis.verdict import Evidence, VerdictName
from lsm_probe.runner.result import Curve, MeasurementResult

Values = NDArray[np.floating[Any]]
Verdicts = frozenset[VerdictName]

FOLLOWS: VerdictName = "follows the instruction"
IGNORES: VerdictName = "ignores the instruction (speech anchor bias)"
NO_SPEECH: VerdictName = "does not use the speech"
BETWEEN: VerdictName = "in between"
CANNOT_TELL: VerdictName = "cannot tell"

NO_VERDICT: Verdicts = frozenset()
FEWEST_UTTERANCES = 6
"""With fewer utterances, not even a sign test can reach a level of 5 %, so no interval is decisive."""
MOST_REQUESTED = 500
"""A larger number of further utterances is not suggested."""


@dataclass(frozen=True)
class Distance:
    """How far a mean lies above a threshold, with its interval.

    Attributes:
        mean, low, high: above 0 if the number exceeds the threshold.
        n: number of independent utterances.
        carrier: a sample of the one utterance without which the mean would be on the other side of the threshold, or
            None.
    """

    mean: float
    low: float
    high: float
    n: int
    carrier: str | None = None

    @property
    def above(self) -> bool:
        """Whether the whole interval is above the threshold, with enough utterances to rely on it."""
        return self.low > 0 and self.n >= FEWEST_UTTERANCES

    @property
    def below(self) -> bool:
        """Whether the whole interval is below the threshold, with enough utterances to rely on it."""
        return self.high < 0 and self.n >= FEWEST_UTTERANCES

    @property
    def is_open(self) -> bool:
        """Whether the interval includes the threshold, or there are too few utterances."""
        return not self.above and not self.below

    def more_utterances(self) -> str:
        """Estimated number of further utterances that would move the interval off the threshold, if the mean stays the
        same."""
        reach = self.mean - self.low if self.mean > 0 else self.high - self.mean
        needed = math.inf if self.mean == 0 else self.n * (reach / abs(self.mean)) ** 2
        if not needed - self.n <= MOST_REQUESTED:  # also true for NaN, without an interval
            return f"more than {MOST_REQUESTED}"
        return str(max(1, math.ceil(needed - self.n)))


@dataclass(frozen=True)
class Finding:
    """A number and the verdicts it supports or contradicts.

    Attributes:
        evidence: the number; its side is filled in once the verdict is known.
        supports, contradicts: the verdicts it speaks for and against.
        distances: its distances above its thresholds, by name of the threshold.
    """

    evidence: Evidence
    supports: Verdicts = NO_VERDICT
    contradicts: Verdicts = NO_VERDICT
    distances: Mapping[str, Distance] = field(default_factory=dict)

    def __getitem__(self, threshold: str) -> Distance:
        return self.distances[threshold]


def n_utterances(result: MeasurementResult) -> int:
    return len(np.unique(result.clusters))


def as_text(value: float | None) -> str:
    """The value with two decimals, or three if it is small."""
    if value is None or math.isnan(value):
        return "undefined"
    digits = 2 if abs(value) >= 0.1 or abs(value) < 0.0005 else 3
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 turns -0.0 into 0.0


def distance(result: MeasurementResult, values: Values) -> Distance:
    found = result.mean(values)
    ends = (float(found.mean), float(found.ci_low), float(found.ci_high))
    return Distance(*ends, n_utterances(result), _carrier(result, values))


def share_distance(result: MeasurementResult, shares: Values, threshold: float) -> Distance:
    found = result.share(shares)
    mean, low, high = (float(end) - threshold for end in (found.mean, found.ci_low, found.ci_high))
    return Distance(mean, low, high, n_utterances(result), _carrier(result, shares - threshold))


def _carrier(result: MeasurementResult, values: Values) -> str | None:
    sums = np.bincount(result.clusters, values)
    flips = np.flatnonzero(np.sign(sums.sum() - sums) != np.sign(sums.sum()))
    if len(sums) == 1 or not len(flips):
        return None
    return str(result.samples[int(np.flatnonzero(result.clusters == flips[0])[0])]["id"])


def number(
    result: MeasurementResult, found: Curve, key: str, label: str, unit: str, compared_with: str, text: str
) -> Evidence:
    n = n_utterances(result)
    value, low, high = (None if np.isnan(x) else float(x) for x in (found.mean, found.ci_low, found.ci_high))
    return Evidence(
        key=key, label=label, value=value, ci_low=low, ci_high=high, unit=unit, n_utterances=n,
        compared_with=compared_with, side="open", text=text,
    )  # fmt: skip


def interval_text(found: Curve) -> str:
    if math.isnan(found.ci_low):
        return f"{as_text(float(found.mean))}, without an interval, because there are fewer than three utterances"
    return f"{as_text(float(found.mean))} [{as_text(float(found.ci_low))}, {as_text(float(found.ci_high))}]"
