"""Knockout, as `lsm-probe knockout` prints it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from lsm_probe.probes.knockout.result import SEGMENTS, KnockoutResult
from lsm_probe.runner.result import GROUPS
from lsm_probe.runner.tables import attention_check, whose, with_interval

_SHOWN = 3
"""Heads of a kind that the note names."""


def knockout_table(results: Sequence[KnockoutResult]) -> Table:
    """Falls averaged over six groups of layers, and with a segment cut off in all: a row for each segment."""
    window = results[0].conventions.window
    table = Table(
        title=f"nats per response token lost when {window} layers may not see a segment, by the middle layer",
        caption="all: cut off in every layer, with the 95 % interval; what other tokens pass on still gets through",
    )
    for column in ("checkpoint", "without"):
        table.add_column(column, overflow="fold")
    groups = [np.array_split(np.arange(result.n_layers), GROUPS) for result in results]
    same_layers = len({result.n_layers for result in results}) == 1
    for i, group in enumerate(groups[0], start=1):
        layers = "–".join(str(layer) for layer in sorted({group[0], group[-1]})) if len(group) else ""
        table.add_column(layers if same_layers else f"{i}/{GROUPS}", justify="right")
    table.add_column("all", justify="right")
    for result, layers_of in zip(results, groups, strict=True):
        for segment in SEGMENTS:
            falls = result.falls(segment).mean
            numbers = [f"{falls[group].mean():.3f}" if len(group) else "" for group in layers_of]
            table.add_row(
                result.name, segment.name.lower(), *numbers, with_interval(result.fall_in_all_layers(segment))
            )
    return table


def knockout_note(result: KnockoutResult) -> str:
    note = f"responses: {whose(result)}; {attention_check(result.self_check)}"
    return f"{note}; {_heads(result)}" if result.head_layers else note


def _heads(result: KnockoutResult) -> str:
    """The heads that matter, those that cost most first."""
    frame = result.head_frame()
    speaks = result.checkpoint["source"] == "speech"
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
