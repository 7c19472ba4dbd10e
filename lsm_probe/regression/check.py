"""The check of an eta curve: whether eta fell in any layer by more than allowed. It reads two stored results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lsm_probe.errors import InputError
from lsm_probe.regression.baseline import notes, read_baseline, require_comparable, require_two_files

SCHEMA = "lsm-probe/check/1"
TOLERANCE = 0.02
SIGNIFICANT = 0.05
"""A paired check calls a layer regressed if its corrected p-value is at most this. The value is copied from
`runner.multiple_testing`, because importing that takes half a second."""
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class CurveCheck:
    """Result of a check. All sequences are `[layers]`.

    Attributes:
        layers: numbers of the layers.
        before, now: eta in the baseline and in the current result.
        tolerance: the allowed fall of eta.
        two_sided: whether a rise counts as much as a fall.
        p: for a paired check, p-values of the layer's change not exceeding the tolerance, corrected for all layers;
            else None.
        n_utterances: for a paired check, the number of utterances.
        would_find: for a paired check, the number of layers where it would have found a change of twice the tolerance.
        notes: other possible causes of a change than the model, one line each.
    """

    ALIGN: ClassVar[str] = "---:"
    about: ClassVar[str] = "eta"

    layers: Sequence[int]
    before: Sequence[float]
    now: Sequence[float]
    tolerance: float
    two_sided: bool = False
    p: Sequence[float] | None = None
    n_utterances: int | None = None
    would_find: int | None = None
    notes: Sequence[str] = ()

    @property
    def moved(self) -> list[float]:
        """The fall of eta in each layer (the absolute change, if two-sided)."""
        # Six decimals are stored: 0.52 - 0.5 should be 0.02, not the float above it.
        falls = [round(before - now, 9) for before, now in zip(self.before, self.now, strict=True)]
        return [abs(fall) for fall in falls] if self.two_sided else falls

    @property
    def ranked(self) -> list[int]:
        """Indices of the layers: those that regressed first, then by the size of their change."""
        moved = self.moved
        return sorted(range(len(moved)), key=lambda i: (not self._has_regressed(i), -moved[i]))

    @property
    def regressed(self) -> list[int]:
        """Indices of the layers that regressed, worst first; empty if there is no regression."""
        return [i for i in self.ranked if self._has_regressed(i)]

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        worst, regressed, layers = self.ranked[0], len(self.regressed), len(self.layers)
        where = f"layer {self.layers[worst]} ({self.before[worst]:.3f} -> {self.now[worst]:.3f})"
        bar = f"tolerance {self.tolerance:g}"
        if self.p is not None:
            bar += f", p = {self.p[worst]:.3f} over {self.n_utterances} utterances"
        if not regressed:
            move = "change" if self.two_sided else "fall"
            return f"holds: largest {move} {max(0.0, self.moved[worst]):.3f} in {where}, {bar}; {layers} layers"
        verb = "fell" if self.now[worst] < self.before[worst] else "rose"
        return (
            f"regressed: eta {verb} by {self.moved[worst]:.3f} in {where}, {bar}; "
            f"{regressed} of {layers} layers regressed"
        )

    @property
    def power(self) -> str | None:
        """For a paired check, the changes that it could have detected."""
        if self.would_find is None or not self.tolerance:
            return None
        return (
            f"with these utterances, a change of {2 * self.tolerance:g} would be found in {self.would_find} of "
            f"{len(self.layers)} layers"
        )

    def rows(self) -> list[list[str]]:
        """A table of the layers with the largest changes, starting with the header row."""
        head = ["layer", "baseline", "current", "change", *(["p"] if self.p is not None else []), ""]
        table = [head]
        for i in self.ranked[:_SHOWN]:
            row = [str(self.layers[i]), f"{self.before[i]:.3f}", f"{self.now[i]:.3f}"]
            row.append(f"{self.now[i] - self.before[i]:+z.3f}")
            if self.p is not None:
                row.append(f"{self.p[i]:.3f}")
            table.append([*row, "regressed" if self._has_regressed(i) else ""])
        return table

    def text(self) -> str:
        """Headline and table as plain text."""
        table = ["  ".join(f"{cell:>8}" for cell in row).rstrip() for row in self.rows()]
        if (more := len(self.layers) - _SHOWN) > 0:
            table.append(f"     ... and {more} layers that changed less (--json lists all)")
        return "\n".join([self.headline, *table, *([self.power] if self.power else [])])

    def to_dict(self) -> dict[str, Any]:
        """The verdict for machines."""
        changes = [round(now - before, 6) for before, now in zip(self.before, self.now, strict=True)]
        return {
            "schema": SCHEMA,
            "verdict": "regressed" if self.regressed else "holds",
            "tolerance": self.tolerance,
            "two_sided": self.two_sided,
            "paired": self.p is not None,
            "regressed": [{"layer": self.layers[i], "change": changes[i]} for i in self.regressed],
            "layers": list(self.layers),
            "baseline": list(self.before),
            "current": list(self.now),
            "change": changes,
            "p": None if self.p is None else [round(value, 6) for value in self.p],
            "n_utterances": self.n_utterances,
            "would_find": self.would_find,
            "notes": list(self.notes),
        }

    def _has_regressed(self, i: int) -> bool:
        return self.moved[i] > self.tolerance and (self.p is None or self.p[i] <= SIGNIFICANT)


def check(
    baseline: str | Path,
    current: str | Path,
    *,
    tolerance: float = TOLERANCE,
    two_sided: bool = False,
    paired: bool = False,
) -> CurveCheck:
    """Compares a current eta curve with a baseline.

    By default a layer has regressed if its eta, baseline minus current, fell by more than `tolerance` *on these
    samples*. With reference responses the probe is deterministic up to rounding, so only a changed model changes the
    curve. `paired` tests more: whether the fall would also be found on other utterances (see
    [`lsm_probe.regression.paired`]).

    Args:
        baseline, current: a `result.json` each, or its folder; with `paired` the folder, with its arrays.
        tolerance: the allowed fall of eta, in units of eta (0 ... 1).
        two_sided: a rise counts as much as a fall.
        paired: a layer has regressed only if its fall would be above `tolerance` on other utterances as well.

    Raises:
        InputError: a result cannot be read, the two cannot be compared, or the tolerance is not a number from 0 to 1.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(f"--tolerance {tolerance} must be a number from 0 to 1, in units of eta")
    require_two_files(current, baseline)
    before, now = read_baseline(baseline), read_baseline(current)
    require_comparable(before, now, paired=paired)
    if paired:
        from lsm_probe.regression.paired import paired_moves

        moves = paired_moves((Path(baseline), before), (Path(current), now), tolerance, two_sided=two_sided)
    else:
        moves = {"before": before.eta.mean, "now": now.eta.mean}
    return CurveCheck(
        layers=before.layers,
        tolerance=tolerance,
        two_sided=two_sided,
        notes=[*notes(before, now, paired=paired), *moves.pop("notes", [])],
        **moves,
    )
