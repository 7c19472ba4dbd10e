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
"""Numbers below and above which more or fewer decimals than two are shown."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One number about a checkpoint.

    Attributes:
        key: its name in `diagnosis.json`, such as `instruction_sensitivity`; the same in every version.
        label: how tables and sentences call it.
        value: the number; None if it is not defined.
        ci_low, ci_high: its 95 % interval over utterances; None if there is none.
        unit: of the number, such as `nats per token`; empty for shares.
        n_utterances: independent utterances behind it.
        compared_with: what the number is compared with, in words.
        side: whether it speaks for the verdict, against it, or leaves it open.
        text: one sentence that says what the number shows.
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
        """The value with its interval, such as `0.45 [0.28, 0.74]`; three decimals where two would show a 0; empty if
        the value is not defined."""
        if self.value is None:
            return ""
        numbers = [each for each in (self.value, self.ci_low, self.ci_high) if each is not None]
        largest = max(map(abs, numbers))
        digits = 3 if 0 < largest < _SMALL else 2 if largest < _LARGE else 0
        # Adding 0 makes -0.0 a 0.
        first, *ends = [f"{round(each, digits) + 0.0:.{digits}f}".replace("-", "−") for each in numbers]
        return f"{first} [{ends[0]}, {ends[1]}]" if len(ends) == 2 else first


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the measurements of one checkpoint show together.

    Attributes:
        checkpoint: its name.
        verdict: one of five.
        reason: one sentence that says which rule led to it, with the numbers.
        evidence: the numbers, the decisive ones first.
        missing: for `cannot tell`, what would settle it, one sentence each.
        warnings: what may mislead, such as one sample that carries a mean, one sentence each.
    """

    checkpoint: str
    verdict: VerdictName
    reason: str
    evidence: Sequence[Evidence] = ()
    missing: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def against(self) -> list[Evidence]:
        """The evidence that speaks against the verdict."""
        return [each for each in self.evidence if each.side == "against"]

    def __repr__(self) -> str:
        numbers = [f"{each.label} {each.shown}" for each in self.evidence[:2] if each.value is not None]
        return one_line("; ".join([f"Verdict({self.checkpoint}): {self.verdict}", *numbers]))

    def _repr_html_(self) -> str:
        """The verdict in a notebook: its reason, the evidence, and a small picture."""
        html: str = resolve_name("lsm_probe.diagnosis.verdict_html:verdict_html")(self)
        return html

    def plot(self) -> Figure:
        """Draws the numbers that decide, with their intervals."""
        figure: Figure = resolve_name("lsm_probe.diagnosis.plot:verdict_figure")([self])
        return figure

    def to_frame(self) -> pd.DataFrame:
        """A row for each number: value, interval, unit, n, what it is compared with, and its side."""
        import pandas as pd

        rows = [{"checkpoint": self.checkpoint, "verdict": self.verdict, **vars(each)} for each in self.evidence]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """What `diagnosis.json` holds of it; numbers to six decimals."""
        evidence = [{name: _rounded(value) for name, value in vars(each).items()} for each in self.evidence]
        return {**vars(self), "evidence": evidence, "missing": list(self.missing), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        return cls(**{**stored, "evidence": [Evidence(**each) for each in stored["evidence"]]})


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
