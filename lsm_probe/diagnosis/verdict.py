"""A verdict about one checkpoint, and the numbers it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, Self

from lsm_probe.errors import one_line

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

VerdictName = Literal[
    "follows the instruction",
    "ignores the instruction (speech anchor bias)",
    "does not use the speech",
    "in between",
    "cannot tell",
]
Side = Literal["for", "against", "open"]

_SMALL, _LARGE = 0.02, 20
"""Smaller numbers are shown with more decimals than two, larger ones with fewer."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One number about a checkpoint.

    Attributes:
        key: name in `diagnosis.json`, such as `instruction_sensitivity`; the same in all versions.
        label: name in tables and sentences.
        value: the number; None if it is undefined.
        ci_low, ci_high: its 95 % interval over utterances; None if there is none.
        unit: unit of the number, such as `nats per token`; empty for shares.
        n_utterances: number of independent utterances.
        compared_with: the reference, in words.
        side: whether the number speaks for the verdict, against it, or neither.
        text: one sentence about what the number shows.
    """

    key: str
    label: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    unit: str
    n_utterances: int
    compared_with: str
    side: Side
    text: str

    @property
    def shown(self) -> str:
        """The value with its interval, such as `0.45 [0.28, 0.74]`; with three decimals if two would show 0; empty if
        the value is undefined."""
        return _with_interval(self.value, self.ci_low, self.ci_high)


@dataclass(frozen=True, kw_only=True)
class TaskNumbers:
    """D_i and repetitions of the samples of one task.

    Attributes:
        task: name of the task, or the instruction if samples name no task.
        n_utterances: number of independent utterances.
        d_i, ci_low, ci_high: D_i on the checkpoint's own responses with its 95 % interval, nats per token; no interval
            with fewer than three utterances.
        base_d_i: the base LLM's D_i for the same samples; None without one.
        repeats, responses: number of responses that only repeat the speech, of those for which repeating is wrong.
    """

    task: str
    n_utterances: int
    d_i: float
    ci_low: float | None
    ci_high: float | None
    base_d_i: float | None
    repeats: int
    responses: int

    @property
    def shown(self) -> str:
        """D_i with its interval, as in [`Evidence.shown`]."""
        return _with_interval(self.d_i, self.ci_low, self.ci_high)

    @property
    def repeat_share(self) -> float:
        """Share of responses that only repeat the speech; 0 without any that could."""
        return self.repeats / max(1, self.responses)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The conclusion from all measurements of one checkpoint.

    Attributes:
        checkpoint: name of the checkpoint.
        verdict: one of five.
        reason: one sentence with the rule that led to the verdict and the numbers.
        evidence: the numbers, decisive ones first.
        missing: for `cannot tell`, what would lead to a verdict, one sentence each.
        warnings: possible pitfalls, such as one sample that determines a mean, one sentence each.
        by_task: D_i and repetitions of each task; empty if there is one task only, or more than 32.
    """

    checkpoint: str
    verdict: VerdictName
    reason: str
    evidence: Sequence[Evidence] = ()
    missing: Sequence[str] = ()
    warnings: Sequence[str] = ()
    by_task: Sequence[TaskNumbers] = ()

    @property
    def against(self) -> list[Evidence]:
        """The evidence that speaks against the verdict."""
        return [each for each in self.evidence if each.side == "against"]

    def __repr__(self) -> str:
        numbers = [f"{each.label} {each.shown}" for each in self.evidence[:2] if each.value is not None]
        return one_line("; ".join([f"Verdict({self.checkpoint}): {self.verdict}", *numbers]))

    def _repr_html_(self) -> str:
        """The notebook view: reason, evidence, and a small figure."""
        html: str = resolve_name("lsm_probe.diagnosis.verdict_html:verdict_html")(self)
        return html

    def plot(self) -> Figure:
        """Draws the decisive numbers, with their intervals."""
        figure: Figure = resolve_name("lsm_probe.diagnosis.plot:verdict_figure")([self])
        return figure

    def to_frame(self) -> pd.DataFrame:
        """A row for each number: value, interval, unit, n, what it is compared with, and its side."""
        import pandas as pd

        rows = [{"checkpoint": self.checkpoint, "verdict": self.verdict, **vars(each)} for each in self.evidence]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """The verdict's entry in `diagnosis.json`; numbers are rounded to six decimals."""
        lists = {"missing": list(self.missing), "warnings": list(self.warnings)}
        return {**vars(self), "evidence": _rows(self.evidence), **lists, "by_task": _rows(self.by_task)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        evidence = [Evidence(**each) for each in stored["evidence"]]
        by_task = [TaskNumbers(**each) for each in stored.get("by_task", [])]
        return cls(**{**stored, "evidence": evidence, "by_task": by_task})


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    numbers = [each for each in (value, low, high) if each is not None]
    largest = max(map(abs, numbers))
    digits = 3 if 0 < largest < _SMALL else 2 if largest < _LARGE else 0
    # Adding 0 makes -0.0 a 0.
    first, *ends = [f"{round(each, digits) + 0.0:.{digits}f}".replace("-", "−") for each in numbers]
    return f"{first} [{ends[0]}, {ends[1]}]" if len(ends) == 2 else first


def _rows(numbers: Sequence[Evidence] | Sequence[TaskNumbers]) -> list[dict[str, Any]]:
    return [{name: _rounded(value) for name, value in vars(each).items()} for each in numbers]


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
