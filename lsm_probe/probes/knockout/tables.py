"""Knockout's output: the terminal table, the line about each result, and the report section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_probe.probes.knockout.plot import knockout_figure, knockout_heads_figure
from lsm_probe.probes.knockout.result import SEGMENTS, KnockoutResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.result import layer_groups
from lsm_probe.runner.tables import (
    NONE,
    Table,
    attention_check,
    layer_group_names,
    measured_on,
    shown,
    whose,
    with_interval,
)

_SHOWN = 3
"""Number of heads of each kind that the note names."""


def knockout_table(results: Sequence[KnockoutResult]) -> Table:
    """Falls averaged over six groups of layers, and with a segment masked in all layers: a row for each segment."""
    rows = []
    for result in results:
        for segment in SEGMENTS:
            falls = result.falls(segment).mean
            numbers = [f"{falls[group].mean():.3f}" for group in layer_groups(result.n_layers)]
            whole = with_interval(result.fall_in_all_layers(segment))
            rows.append([result.name, segment.name.lower(), *numbers, whole])
    window = results[0].conventions.window
    return Table(
        f"fall of log-probability (nats per token) when {window} layers cannot attend to a segment, by middle layer",
        ["checkpoint", "without", *layer_group_names([result.n_layers for result in results]), "all"],
        rows,
        "all: attention blocked in every layer, with the 95 % interval; other tokens can still pass on information",
        text_columns=2,
    )


def knockout_note(result: KnockoutResult) -> str:
    note = f"responses: {whose(result)}; {attention_check(result.self_check)}"
    return "; ".join([note, *result.influence_notes(), *([_heads(result)] if result.head_layers else [])])


def _heads(result: KnockoutResult) -> str:
    """The heads that matter, sorted by their fall, largest first."""
    frame = result.head_frame()
    speaks = result.checkpoint.source == "speech"
    names = {"source": "speech-anchor heads" if speaks else "source heads", "instruction": "instruction heads"}
    parts = []
    for kind, name in names.items():
        fall = f"fall_{kind}"
        found = frame[frame["kind"] == kind].sort_values(fall, ascending=False)
        shown = [
            f"{row['layer']}.{row['head']} ({row[fall]:.4f} [{row[f'{fall}_low']:.4f}, {row[f'{fall}_high']:.4f}])"
            for row in found.head(_SHOWN).to_dict("records")
        ]
        parts.append(f"{name}, {len(found)}" + (f": {', '.join(shown)}" if shown else ""))
    both = (frame["kind"] == "both").sum()
    return f"of {len(frame)} heads {'; '.join(parts)}; both, {both}"


def knockout_section(measurement: Measurement, results: Sequence[KnockoutResult], everything: Any) -> Section:
    """Figure and table of the falls, and maps of single heads if these were masked."""
    pictures = [
        picture(
            knockout_figure(results),
            "knockout",
            "Fall of the log-probability without instruction and without source, by layer",
        )
    ]
    if all(result.head_layers for result in results):
        figure = knockout_heads_figure(results)
        pictures.append(
            picture(figure, "knockout-heads", "Fall of the log-probability when one head cannot attend to a segment")
        )
    return Section(
        measurement.name,
        "Knockout",
        f"Attention from the response to a segment is blocked in {results[0].conventions.window} neighbouring layers "
        "at a time. The figure shows by how much the log-probability of the response falls. Information can still pass "
        "through other tokens that read the segment before: the instruction through the source tokens, for example. "
        "The masked model is out of distribution, so the falls are not bounds.",
        pictures,
        [_report_table(results)],
    )


def _report_table(results: Sequence[KnockoutResult]) -> Table:
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
        "largest fall without the instruction: layer (fall)",
        "largest fall without the source: layer (fall)",
        "causal η, mean over layers",
    ]
    note = (
        f"{measured_on(results)} causal η: the instruction's share of both falls, in the layers where both are above 0."
    )
    note = " ".join([note, *(f"{r.name}: {sentence}." for r in results for sentence in r.influence_notes())])
    title = "Fall of the log-probability of the response, nats per token: blocked in all layers, and in windows"
    return Table(title, columns, rows, note)
