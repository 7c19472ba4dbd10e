"""Text ability results: MMLU accuracy and perplexity of one checkpoint, and forgetting rates between two."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsm_probe.evaluation.metrics import Floats, Metric, estimated
from lsm_probe.evaluation.mmlu import CHANCE, GROUPS, LETTERS, SUBJECTS
from lsm_probe.intervals import share_difference_interval
from lsm_probe.runner.conventions import Choices
from lsm_probe.runner.result import Curve, MeasurementResult, curve

AVERAGE, AVERAGE_OF_GROUPS = "average", "average_of_groups"


@dataclass(frozen=True)
class TextAbilityConventions(Choices):
    """The choice that the numbers depend on: examples before each question of MMLU (None without MMLU)."""

    shots: int | None = None


@dataclass(frozen=True)
class Estimate:
    """A number of one checkpoint with its 95 % interval.

    Attributes:
        curve: the number and its interval.
        left_out: the number without each question or text in turn, `[questions]`.
        n: number of questions or texts.
    """

    curve: Curve
    left_out: Floats
    n: int

    @property
    def value(self) -> float:
        return float(self.curve.mean)

    def to_dict(self) -> dict[str, Any]:
        return {**self.curve.to_dict(), "n": self.n}


@dataclass(frozen=True, kw_only=True)
class TextAbilityResult(MeasurementResult):
    """MMLU accuracy and perplexity of text of a checkpoint's LLM.

    Each number has an interval over its own questions or texts only, and does not depend on other measurements.

    Attributes:
        counts: `[samples, 2]`, float64: for a text the negative log-likelihood of its target in nats and its number of
            tokens; for a question of MMLU 1 or 0 (right or wrong), and 1. Questions are the samples with a `subject`.
    """

    NAME: ClassVar[str] = "text_ability"
    BY_SAMPLE: ClassVar[tuple[str, ...]] = ("counts",)
    PLOT: ClassVar[str] = "lsm_probe.evaluation.plot:plot_text_ability"
    TABLE: ClassVar[str] = "lsm_probe.evaluation.text_ability_table:text_ability_table"

    counts: Floats
    conventions: TextAbilityConventions

    def drift_from(self, reference: TextAbilityResult) -> dict[str, Any]:
        nats = (self.counts[:, 0] - reference.counts[:, 0]) / self.counts[:, 1]
        return {"negative log-likelihood (nats per token)": nats}

    @cached_property
    def accuracies(self) -> dict[str, Estimate]:
        """MMLU accuracy in per cent by name: `average` over all questions, that of each group and of each subject, and
        `average_of_groups`; empty without MMLU.

        Table 6 of arXiv 2410.03798 seems to average over all questions: its groups, weighted by their questions (with
        anatomy in "other", as in the original), give its 49.8 and 49.4 per cent; unweighted they give 50.2 and 49.7.
        """
        if not self._questions.any():
            return {}
        subjects = np.array([sample.get("subject", "") for sample in self.samples])
        groups = np.array([sample.get("group", "") for sample in self.samples])
        named = {AVERAGE: self._questions}
        named |= {group: groups == group for group in GROUPS if group in groups}
        named |= {subject: subjects == subject for subject in sorted({*subjects[self._questions].tolist()})}
        found = {name: self._number(rows, self.counts, lambda sums: 100 * _ratio(sums)) for name, rows in named.items()}
        by_group = [np.where((groups == group)[:, None], self.counts, 0) for group in GROUPS if group in groups]
        return {**found, AVERAGE_OF_GROUPS: self._number(self._questions, np.hstack(by_group), _mean_of_groups)}

    @cached_property
    def nats(self) -> Estimate | None:
        """Nats per token of the texts: sum of nats / sum of tokens. None without texts."""
        return None if self._questions.all() else self._number(~self._questions, self.counts, _ratio)

    @cached_property
    def perplexity(self) -> Estimate | None:
        """`exp` of nats per token; NaN, with a warning, if that is too large for a float."""
        nats = self.nats
        if nats is None:
            return None
        found = _exp(f"the perplexity of {self.name}", nats.curve)
        with np.errstate(over="ignore"):
            return Estimate(found, np.exp(nats.left_out), nats.n)

    @property
    def tokens(self) -> int:
        """Tokens of the texts' targets."""
        return int(self.counts[~self._questions, 1].sum())

    @property
    def chosen(self) -> dict[str, float]:
        """How often each letter was chosen in MMLU, per cent."""
        letters = Counter(sample["chosen"] for sample in self.samples if "subject" in sample)
        return {letter: round(100 * letters[letter] / max(1, letters.total()), 2) for letter in LETTERS}

    @property
    def subjects(self) -> list[str]:
        return sorted({sample["subject"] for sample in self.samples if "subject" in sample})

    @property
    def cut(self) -> int:
        """Questions of MMLU whose prompt was cut at its beginning, as the harness does, to fit the context."""
        return sum(sample.get("cut", False) for sample in self.samples)

    def headline(self) -> str:
        found = []
        if self.accuracies:
            found.append(f"MMLU {self.accuracies[AVERAGE].curve} %")
        if self.perplexity is not None:
            found.append(f"perplexity {self.perplexity.curve}")
        return ", ".join(found)

    def to_frame(self) -> pd.DataFrame:
        """A row for each number: accuracies in per cent, nats per token, perplexity."""
        numbers = {f"mmlu_{name}": number for name, number in self.accuracies.items()}
        numbers |= {name: n for name, n in (("nats_per_token", self.nats), ("perplexity", self.perplexity)) if n}
        return pd.DataFrame([{"checkpoint": self.name, "number": name, **n.to_dict()} for name, n in numbers.items()])

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {"mmlu": None, "perplexity": None}
        if self.accuracies:
            found["mmlu"] = {
                "unit": "per cent",
                "chance": CHANCE,
                "n_subjects": f"{len(self.subjects)} of {SUBJECTS}",
                "cut_prompts": self.cut,
                "chosen": self.chosen,
                **_arranged({name: number.to_dict() for name, number in self.accuracies.items()}, self.subjects),
            }
        if self.nats is not None and self.perplexity is not None:
            found["perplexity"] = {
                "nats_per_token": self.nats.curve.to_dict(),
                "perplexity": self.perplexity.curve.to_dict(),
                "n_texts": self.nats.n,
                "n_tokens": self.tokens,
            }
        return found

    def differences(self, other: TextAbilityResult) -> dict[str, Any]:
        """`other` minus this one with paired intervals, and forgetting rates relative to this one."""
        mine, theirs = self.accuracies, other.accuracies
        accuracies = {name: _forgotten(mine[name], theirs[name]) for name in mine}
        found: dict[str, Any] = {"mmlu": _arranged(accuracies, self.subjects) or None, "perplexity": None}
        if self.nats is not None and other.nats is not None:
            above = curve(np.asarray(other.nats.value - self.nats.value), other.nats.left_out - self.nats.left_out)
            found["perplexity"] = {
                "difference": {"unit": "nats per token", **above.to_dict()},
                "ratio": _exp(f"the ratio of perplexities of {other.name} and {self.name}", above).to_dict(),
            }
        return found

    def warning(self, other: TextAbilityResult, controls: Sequence[str] = ()) -> str | None:
        if np.array_equal(self.counts[~self._questions, 1], other.counts[~other._questions, 1]):
            return None
        return (
            f"{self.name} and {other.name} cut the texts into different tokens: their nats per token and "
            "perplexities cannot be compared"
        )

    @cached_property
    def _questions(self) -> NDArray[np.bool_]:
        return np.array(["subject" in sample for sample in self.samples])

    def _number(self, rows: NDArray[np.bool_], counts: Floats, score: Callable[[Floats], Floats]) -> Estimate:
        """A number of some rows; a share in per cent if these are questions."""
        is_share = bool(self._questions[rows].all())
        metric = Metric(self.NAME, counts[rows], score, int(rows.sum()), is_share=is_share, highest=np.inf)
        utterances = [str(cluster) for cluster in self.clusters[rows]]
        left_out = metric.leave_one_out(utterances, np.ones(metric.n, dtype=np.bool_))
        found = estimated(metric, metric.value, left_out, metric.n, {})
        ends = (np.asarray(end) for end in (found.value, found.ci_low, found.ci_high))
        return Estimate(Curve(*ends), left_out, metric.n)

    @classmethod
    def _fields(cls, arrays: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
        return {**arrays, "conventions": TextAbilityConventions(**summary["conventions"])}


def _forgotten(before: Estimate, after: Estimate) -> dict[str, Any]:
    """Difference in percentage points, and the forgetting rate (before - after) / before in per cent (Speech-IFEval,
    arXiv 2505.19037): plain, and relative to the knowledge above chance; None if there was nothing to forget."""
    change, changes = after.value - before.value, after.left_out - before.left_out
    ends = (100 * end for end in share_difference_interval(change / 100, changes / 100))
    found: dict[str, Any] = {"difference": Curve(np.asarray(change), *ends).to_dict()}
    for name, floor in (("forgetting_rate", 0.0), ("forgetting_rate_above_chance", CHANCE)):
        low = float(before.curve.ci_low)
        if not low > floor:
            found[name] = None
            found[f"why_no_{name}"] = (
                "before, there are too few questions for an interval"
                if np.isnan(low)
                else f"before, the interval begins at {low:.1f} %: not above {floor:g} %"
            )
            continue
        rate = np.asarray(100 * (before.value - after.value) / (before.value - floor))
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = 100 * (before.left_out - after.left_out) / (before.left_out - floor)
        found[name] = curve(rate, rates).to_dict()
    return found


def _arranged(numbers: dict[str, Any], subjects: list[str]) -> dict[str, Any]:
    """Averages and groups first, subjects in a separate dictionary."""
    whole = {name: number for name, number in numbers.items() if name not in subjects}
    own = {name: numbers[name] for name in subjects if name in numbers}
    return {**whole, "subjects": own} if numbers else {}


def _exp(what: str, nats: Curve) -> Curve:
    """`exp` of a number of nats per token and of its interval; NaN, with a warning, if these overflow."""
    with np.errstate(over="ignore"):
        ends = {name: np.exp(end) for name, end in vars(nats).items()}
    if any(np.isinf(end) for end in ends.values()):
        part, largest = (what, nats.mean) if np.isinf(ends["mean"]) else (f"the interval of {what}", nats.ci_high)
        warnings.warn(
            f"{part} overflows (exp of {largest:.0f} nats per token) and is stored as null; read the nats per token "
            "instead",
            stacklevel=3,
        )
        ends |= {"ci_low": np.asarray(np.nan), "ci_high": np.asarray(np.nan)}
    return Curve(**{name: np.where(np.isinf(end), np.nan, end) for name, end in ends.items()})


def _ratio(sums: Floats) -> Floats:
    return sums[..., 0] / sums[..., 1]


def _mean_of_groups(sums: Floats) -> Floats:
    """`[..., 2 * groups]` -> `[...]`; a group without a question is left out."""
    by_group = sums.reshape(*sums.shape[:-1], -1, 2)
    held = by_group[..., 1] > 0
    return np.where(held, 100 * by_group[..., 0] / np.where(held, by_group[..., 1], 1), 0).sum(-1) / held.sum(-1)
