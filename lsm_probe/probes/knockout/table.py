"""Knockout, as `lsm-probe knockout` prints it."""

from __future__ import annotations

from collections.abc import Sequence

from lsm_probe.probes.knockout.result import SEGMENTS, KnockoutResult
from lsm_probe.runner.result import layer_groups
from lsm_probe.runner.tables import Table, attention_check, layer_group_names, whose, with_interval

_SHOWN = 3
"""Heads of a kind that the note names."""


def knockout_table(results: Sequence[KnockoutResult]) -> Table:
    """Falls averaged over six groups of layers, and with a segment cut off in all: a row for each segment."""
    rows = []
    for result in results:
        for segment in SEGMENTS:
            falls = result.falls(segment).mean
            numbers = [f"{falls[group].mean():.3f}" for group in layer_groups(result.n_layers)]
            whole = with_interval(result.fall_in_all_layers(segment))
            rows.append([result.name, segment.name.lower(), *numbers, whole])
    window = results[0].conventions.window
    return Table(
        f"nats per response token lost when {window} layers may not see a segment, by the middle layer",
        ["checkpoint", "without", *layer_group_names([result.n_layers for result in results]), "all"],
        rows,
        "all: cut off in every layer, with the 95 % interval; what other tokens pass on still gets through",
        text_columns=2,
    )


def knockout_note(result: KnockoutResult) -> str:
    note = f"responses: {whose(result)}; {attention_check(result.self_check)}"
    return f"{note}; {_heads(result)}" if result.head_layers else note


def _heads(result: KnockoutResult) -> str:
    """The heads that matter, those that cost most first."""
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
