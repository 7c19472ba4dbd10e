"""Eta, as `lsm-probe attention` prints it."""

from __future__ import annotations

from collections.abc import Sequence

from lsm_probe.probes.attention.result import SEGMENTS, AttentionResult
from lsm_probe.runner.tables import Table, attention_check, layer_group_names

_SHOWN = 3
"""Heads that the note names."""


def attention_table(results: Sequence[AttentionResult]) -> Table:
    """Eta averaged over six groups of layers: a row for each checkpoint and segment convention."""
    rows = []
    for result in results:
        tokens = f"{result.tokens[:, SEGMENTS.index('source')].mean():.1f}"
        for segment in ("mean", "sum"):
            groups = result.with_conventions(segment=segment).eta_groups()
            rows.append([result.name, tokens, segment, *(f"{group['eta']:.3f}" for group in groups)])
    return Table(
        "instruction proportion η by layers: 0.5 is balanced, low is speech anchor bias",
        ["checkpoint", "tokens", "segment", *layer_group_names([result.n_layers for result in results])],
        rows,
        "tokens: source tokens, mean over samples; segment: mean or sum over a segment's tokens",
        text_columns=3,
    )


def attention_note(result: AttentionResult) -> str:
    return f"{attention_check(result.self_check)}; {_lowest_heads(result)}"


def _lowest_heads(result: AttentionResult) -> str:
    """The heads that read the source rather than the instruction, of those that carry something."""
    frame = result.head_frame()
    heads = frame["head"].nunique()
    found = frame[frame["share"] >= 1 / heads].nsmallest(_SHOWN, "eta")
    shown = [
        f"{row['layer']}.{row['head']} ({row['eta']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}], "
        f"{100 * row['share']:.0f} % of its layer)"
        for row in found.to_dict("records")
    ]
    return f"lowest η of heads with an even share of their layer or more: {', '.join(shown)}"
