"""Alignment in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_probe.probes.alignment.plot import alignment_figure
from lsm_probe.probes.alignment.result import AlignmentResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.tables import Table, shown


def alignment_section(measurement: Measurement, results: Sequence[AlignmentResult], everything: Any) -> Section:
    """Planes and curves, and the numbers of the last state."""
    figure = alignment_figure(results)
    return Section(
        measurement.name,
        "Alignment",
        f"Where the states of the {results[0].conventions.segment} lie for speech and for its transcript: both in one "
        "plane by t-SNE, whose distances mean little, and beside it the numbers by state, which mean something above "
        "chance alone.",
        [picture(figure, "alignment", "Speech and transcripts in one plane, and their likeness by state")],
        [_table(results)],
    )


def _table(results: Sequence[AlignmentResult]) -> Table:
    """Numbers of the last state, and where retrieval is best."""
    names = {
        "paired_cosine": "cosine, own",
        "cosine_gap": "above another's",
        "cka": "CKA",
        "retrieval": "R@1",
        "centroid_distance": "distance of centres",
    }
    rows = []
    for result in results:
        curves, p = result.curves(), result.mmd()["p_value"][-1]
        best = int(np.nanargmax(curves["retrieval"].mean))
        rows.append(
            [
                result.name,
                *(shown(curves[name].at(-1)) for name in names),
                f"{p:.3f}",
                f"{curves['retrieval'].mean[best]:.2f} in state {result.layers[best]}",
            ]
        )
    note = f"R@1 by lot: {results[0].chance():.2f}. MMD p below 0.05: the two sets can be told apart."
    columns = ["", *names.values(), "MMD p", "best R@1"]
    return Table(f"Speech and its transcript at the last state ({results[0].state()})", columns, rows, note)
