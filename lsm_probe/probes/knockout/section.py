"""Knockout in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_probe.probes.knockout.plot import knockout_figure, knockout_heads_figure
from lsm_probe.probes.knockout.result import SEGMENTS, KnockoutResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.tables import NONE, Table, measured_on, shown


def knockout_section(measurement: Measurement, results: Sequence[KnockoutResult], everything: Any) -> Section:
    """Figure and table of the falls, and maps of single heads where these were masked."""
    pictures = [picture(knockout_figure(results), "knockout", "What is lost without instruction and source, by layer")]
    if all(result.head_layers for result in results):
        figure = knockout_heads_figure(results)
        pictures.append(picture(figure, "knockout-heads", "What is lost without one head's view of each segment"))
    return Section(
        measurement.name,
        "Knockout",
        f"The response may not see a segment in {results[0].conventions.window} neighbouring layers; shown is "
        "what it loses. What other tokens had taken from the segment before still gets through: the instruction "
        "reaches the response through the source tokens, for example.",
        pictures,
        [_table(results)],
    )


def _table(results: Sequence[KnockoutResult]) -> Table:
    rows = []
    for result in results:
        falls = [result.fall_in_all_layers(segment) for segment in SEGMENTS]
        eta = result.causal_eta()
        worst = [int(result.falls(segment).mean.argmax()) for segment in SEGMENTS]
        known = int(np.isfinite(eta.mean).sum())
        rows.append(
            [
                result.name,
                *map(shown, falls),
                *(f"{layer} ({shown(result.falls(s).at(layer))})" for layer, s in zip(worst, SEGMENTS, strict=True)),
                f"{np.nanmean(eta.mean):.2f} (of {known} of {result.n_layers} layers)" if known else NONE,
            ]
        )
    columns = [
        "",
        "without the instruction",
        "without the source",
        "worst window, instruction",
        "worst window, source",
        "causal η, mean where both matter",
    ]
    note = (
        f"{measured_on(results)} causal η: the instruction's part of both losses, in the layers where both are above 0."
    )
    return Table("What the response loses, nats per token: cut off in all layers, and in windows", columns, rows, note)
