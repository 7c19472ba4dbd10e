"""Alignment's output: the terminal table, the line about each result, and the report section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_probe.probes.alignment.plot import alignment_figure
from lsm_probe.probes.alignment.result import ALPHA, AlignmentResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.tables import NONE, Table, shown

_STATES = 7
"""States that the table shows, evenly spread from the first to the last."""


def alignment_table(results: Sequence[AlignmentResult]) -> Table:
    """Every number at some states: a row for each checkpoint and number."""
    same_layers = all(result.layers == results[0].layers for result in results)
    places = _places(results[0])
    columns = [str(results[0].layers[p]) if same_layers else f"{i}/{len(places)}" for i, p in enumerate(places, 1)]
    rows = [
        # As many columns as the first result has.
        [result.name, label, *[_cell(value) for value in values[np.array(_places(result))]][: len(places)]]
        for result in results
        for label, values in _rows(result).items()
    ]
    return Table(
        "similarity of speech and its transcript by hidden state (0: embeddings; last: after all layers)",
        ["checkpoint", "number", *columns],
        rows,
        "gap: cosine with the own minus with other transcripts; std: dimensions standardised to mean 0 and variance 1; "
        "R@1: how often the own partner is nearest, mean of both directions; distance: between the centroids, in units "
        "of the spread; MMD, p: p-value of the test that speech and transcripts have the same distribution",
        text_columns=2,
    )


def alignment_note(result: AlignmentResult) -> str:
    differ = int((result.mmd()["p_value"] < ALPHA).sum())
    note = (
        f"segment {result.conventions.segment}; R@1 by chance {result.chance():.3f}; distance by noise alone "
        f"{result.centroid_floor():.2f}; MMD distinguishes speech from text (p < {ALPHA:g}) at {differ} of "
        f"{len(result.layers)} states"
    )
    instructions = len({sample["instruction"] for sample in result.samples})
    if instructions > 1:
        note += f"; {instructions} instructions, which also make samples differ (--instruction sets one for all)"
    return note


def _rows(result: AlignmentResult) -> dict[str, np.ndarray]:
    curves = {name: curve.mean for name, curve in result.curves().items()}
    return {
        "cosine, own": curves["paired_cosine"],
        "cosine gap": curves["cosine_gap"],
        "cosine, std": curves["standardised_cosine"],
        "CKA": curves["cka"],
        "CKA, std": curves["standardised_cka"],
        "R@1": curves["retrieval"],
        "R@1, std": curves["standardised_retrieval"],
        "distance": curves["centroid_distance"],
        "MMD, p": result.mmd()["p_value"],
    }


def _places(result: AlignmentResult) -> list[int]:
    count = min(_STATES, len(result.layers))
    return [int(place) for place in np.linspace(0, len(result.layers) - 1, count).round()]


def _cell(value: float) -> str:
    return NONE if np.isnan(value) else f"{value:z.3f}"


def alignment_section(measurement: Measurement, results: Sequence[AlignmentResult], everything: Any) -> Section:
    """Planes and curves, and the numbers of the last state."""
    figure = alignment_figure(results)
    return Section(
        measurement.name,
        "Alignment",
        f"How similar the hidden states of the {results[0].conventions.segment} are for speech and for its transcript. "
        "Left: both in one t-SNE plane, whose distances mean little. Right: similarity by state; dotted lines show the "
        "level of chance.",
        [picture(figure, "alignment", "Speech and transcripts in one plane, and their similarity by state")],
        [_report_table(results)],
    )


def _report_table(results: Sequence[AlignmentResult]) -> Table:
    """Numbers of the last state, and where retrieval is best."""
    names = {
        "paired_cosine": "cosine, own",
        "cosine_gap": "cosine gap to other transcripts",
        "cka": "CKA",
        "retrieval": "R@1",
        "centroid_distance": "distance of centroids",
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
    note = (
        f"R@1: how often the own partner is nearest; {results[0].chance():.2f} by chance. MMD p below 0.05: speech and "
        "transcripts differ."
    )
    columns = ["", *names.values(), "MMD p", "best R@1"]
    return Table(f"Speech and its transcript at the last state ({results[0].state()})", columns, rows, note)
