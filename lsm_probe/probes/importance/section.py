"""Importance in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_probe.probes.importance.plot import importance_figure
from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.tables import NONE, Table


def importance_section(measurement: Measurement, results: Sequence[ImportanceResult], everything: Any) -> Section:
    """Shares of the layers, and how they shift from the first checkpoint to the others."""
    return Section(
        measurement.name,
        "Importance by layer",
        "How much the loss would change, to first order, if a weight were 0. Shares of all layers, since a model that "
        "answers worse has larger gradients everywhere.",
        [picture(importance_figure(results), "importance", "Importance by layer and by module")],
        [_table(results)],
    )


def _table(results: Sequence[ImportanceResult]) -> Table:
    rows = []
    for result in results:
        share, shift = result.share_by_layer(), None
        if result is not results[0] and result.ids == results[0].ids:
            shift = results[0].differences(result)["shift"]
        peak = int(share.mean.argmax())
        divergence = shift["jensen_shannon"] if shift is not None else None
        rows.append(
            [
                result.name,
                f"{peak} ({_percent(share, peak)})",
                NONE if divergence is None else _curve(divergence, 3),
                NONE if shift is None else _curve(shift["rank_correlation"], 2),
            ]
        )
    columns = ["", "peak layer (its share)", "Jensen–Shannon divergence", "rank correlation"]
    return Table(f"Importance by layer; shift against {results[0].name}", columns, rows)


def _percent(found: Any, place: int) -> str:
    mean, low, high = (100 * float(end[place]) for end in (found.mean, found.ci_low, found.ci_high))
    return f"{mean:.1f} %" + (f" [{low:.1f}, {high:.1f}]" if np.isfinite(low) else "")


def _curve(found: Any, digits: int) -> str:
    """A stored number, with its interval where it has one."""
    if not isinstance(found, dict):
        return f"{found:.{digits}f}"
    return f"{found['mean']:.{digits}f} [{found['ci_low']:.{digits}f}, {found['ci_high']:.{digits}f}]".replace("-", "−")
