"""Attention's output: the terminal table, the line about each result, and the report section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_probe.probes.attention.plot import eta_heads_figure
from lsm_probe.probes.attention.reference import differing, last_group_eta, last_layers, reference_of
from lsm_probe.probes.attention.result import SEGMENTS, AttentionResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.result import Curve
from lsm_probe.runner.tables import NONE, Table, attention_check, layer_group_names, shown

_SHOWN = 3
"""Number of heads that are named for each checkpoint."""


def attention_table(results: Sequence[AttentionResult]) -> Table:
    """Eta averaged over six groups of layers: a row for each checkpoint and segment convention."""
    rows = []
    for result in results:
        tokens = f"{result.tokens[:, SEGMENTS.index('source')].mean():.1f}"
        for segment in ("mean", "sum"):
            groups = result.with_conventions(segment=segment).eta_groups()
            rows.append([result.name, tokens, segment, *(f"{group['eta']:.3f}" for group in groups)])
    return Table(
        "instruction proportion η by layers: 0.5 is balanced, low values can mean speech anchor bias",
        ["checkpoint", "tokens", "segment", *layer_group_names([result.n_layers for result in results])],
        rows,
        "tokens: source tokens, mean over samples; segment: mean or sum over a segment's tokens",
        text_columns=3,
    )


def attention_note(result: AttentionResult) -> str:
    heads = [f"{head} ({eta}, share {share})" for head, eta, share in _lowest_heads(result)]
    lowest = f"lowest η among heads with at least an even share of their layer's attention: {', '.join(heads)}"
    return f"{attention_check(result.self_check)}; {lowest}"


def _lowest_heads(result: AttentionResult) -> list[tuple[str, str, str]]:
    """Name, eta and share of the lowest-eta heads among those with at least an equal share of their layer."""
    frame = result.head_frame()
    found = frame[frame["share"] >= 1 / frame["head"].nunique()].nsmallest(_SHOWN, "eta")
    return [
        (
            f"{row['layer']}.{row['head']}",
            shown(Curve(*(np.asarray(row[end]) for end in ("eta", "ci_low", "ci_high")))),
            f"{100 * row['share']:.0f} %",
        )
        for row in found.to_dict("records")
    ]


def attention_section(measurement: Measurement, results: Sequence[AttentionResult], everything: Any) -> list[Section]:
    """Token counts and comparisons at the same source length, then maps of single heads."""
    measured = [result for result in results if not result.is_control]
    figure = picture(eta_heads_figure(measured), "heads", "Maps of η by layer and head, one for each checkpoint")
    return [
        Section(
            "tokens",
            "Token counts and the length-matched control",
            "The number of source tokens alone changes η: with a longer source, η by mean rises and η by sum falls. "
            "Therefore a speech checkpoint is compared with a length-matched control. The control is the text LLM with "
            "transcripts repeated or cut to the number of speech tokens; its responses stay the same.",
            tables=[_tokens(results)],
        ),
        Section(
            "heads",
            "Single heads",
            "The colour of a square is η of the head: red heads attend more to the source, blue heads more to the "
            "instruction. The area of a square is the head's share of its layer's attention.",
            [figure],
            [_heads(results)],
        ),
    ]


def _tokens(attention: Sequence[AttentionResult]) -> Table:
    """Token counts, eta under both segment conventions, and eta of the reference of each checkpoint."""
    measured = [result for result in attention if not result.is_control]
    rows = []
    for result in measured:
        reference = reference_of(attention, result)
        both = [NONE] * 4
        if reference is not None:
            marks = differing(result, reference) if reference.n_layers == result.n_layers else None
            layers = [NONE] * 2 if marks is None else [_layers(marks, side) for side in (-1, 1)]
            both = [*_by_segment(reference), *layers]
        counts = [_counts(result, segment) for segment in ("source", "instruction")]
        rows.append([result.name, *counts, *_by_segment(result), *both])
    first, last = last_layers(attention[0])
    where = f"layers {first}–{last}" if len({r.n_layers for r in attention}) == 1 else "the last sixth of the layers"
    other = "text LLM at that length" if any(r.checkpoint.source == "text" for r in measured) else "the first"
    columns = ["", "source", "instruction", "η, mean", "η, sum"]
    columns += [f"{other}, mean", f"{other}, sum", "lower in layers", "higher in layers"]
    return Table(
        f"Tokens (mean and range), and η in {where} by mean and by sum over a segment's tokens",
        columns,
        rows,
        "Lower, higher: layers where η differs from η of the text LLM at that length, or without a text LLM, of the "
        "first checkpoint (p < 0.05, sign permutation test over paired utterances, corrected for the number of "
        "layers). With five utterances or fewer, no difference can be significant.",
    )


def _heads(attention: Sequence[AttentionResult]) -> Table:
    measured = [result for result in attention if not result.is_control]
    rows = [[result.name, *head] for result in measured for head in _lowest_heads(result)]
    caption = "Heads with the lowest η, among those with at least an even share of their layer's attention"
    return Table(caption, ["", "layer.head", "η", "share of its layer"], rows)


def _by_segment(result: AttentionResult) -> list[str]:
    return [shown(last_group_eta(result.with_conventions(segment=segment))) for segment in ("mean", "sum")]


def _counts(result: AttentionResult, segment: str) -> str:
    counts = result.tokens[:, SEGMENTS.index(segment)]
    low, high = int(counts.min()), int(counts.max())
    return f"{counts.mean():.1f}" + (f" ({low}–{high})" if low < high else "")


def _layers(differs: Sequence[int], side: int) -> str:
    """`3–7, 9`."""
    runs: list[list[int]] = []
    for layer in (i for i, own in enumerate(differs) if own == side):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"
