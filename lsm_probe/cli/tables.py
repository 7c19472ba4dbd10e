"""What the probes' commands print: a table of the results and a line about each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from lsm_probe.probes.attention_result import SEGMENTS, AttentionResult
from lsm_probe.probes.knockout_result import SEGMENTS as CUT
from lsm_probe.probes.knockout_result import KnockoutResult
from lsm_probe.probes.result import GROUPS, Curve
from lsm_probe.probes.sensitivity_result import SensitivityResult


def attention_table(results: Sequence[AttentionResult]) -> Table:
    """Eta averaged over six groups of layers: a row for each checkpoint and segment convention."""
    table = Table(
        title="instruction proportion η by layers: 0.5 is balanced, low is speech anchor bias",
        caption="tokens: source tokens, mean over samples; segment: mean or sum over a segment's tokens",
    )
    table.add_column("checkpoint", overflow="fold")
    table.add_column("tokens", justify="right")
    table.add_column("segment")
    groups = results[0].eta_groups()
    same_layers = len({result.n_layers for result in results}) == 1
    for i, group in enumerate(groups, start=1):
        layers = "–".join(str(layer) for layer in sorted(set(group["layers"])))
        table.add_column(layers if same_layers else f"{i}/{len(groups)}", justify="right")
    for result in results:
        tokens = f"{result.tokens[:, SEGMENTS.index('source')].mean():.1f}"
        for segment in ("mean", "sum"):
            groups = result.with_conventions(segment=segment).eta_groups()
            table.add_row(escape(result.name), tokens, segment, *(f"{group['eta']:.3f}" for group in groups))
    return table


def attention_note(result: AttentionResult) -> str:
    return _attention_check(result.self_check)


def sensitivity_table(results: Sequence[SensitivityResult]) -> Table:
    """D_i, D_s and info-eta: a row for each checkpoint and reading."""
    table = Table(
        title="what the response depends on: nats that the own instruction (D_i) and source (D_s) add",
        caption="95 % interval over utterances; most: log of the pool's size; – where D_i or D_s may be 0",
    )
    for column in ("checkpoint", "per"):
        table.add_column(column, overflow="fold")
    for column in ("D_i", "D_s", "most", "info-η"):
        table.add_column(column, justify="right")
    for result in results:
        for per in ("token", "response"):
            read = result.with_conventions(per=per)
            most = "/".join(dict.fromkeys(f"{ceiling:.2f}" for ceiling in read.ceilings()))
            info_eta = read.info_eta()
            numbers = (_with_interval(read.instruction()), _with_interval(read.source()), most)
            table.add_row(escape(result.name), per, *numbers, "–" if info_eta is None else _with_interval(info_eta))
    return table


def sensitivity_note(result: SensitivityResult) -> str:
    check = result.self_check
    return f"responses: {_whose(result)}; scored to {check['mean']:.0e} nats a token (bound {check['bound']:.0e})"


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
        for segment in CUT:
            falls = result.falls(segment).mean
            numbers = [f"{falls[group].mean():.3f}" if len(group) else "" for group in layers_of]
            table.add_row(
                escape(result.name), segment.name.lower(), *numbers, _with_interval(result.fall_in_all_layers(segment))
            )
    return table


def knockout_note(result: KnockoutResult) -> str:
    return f"responses: {_whose(result)}; {_attention_check(result.self_check)}"


def _attention_check(check: dict[str, Any]) -> str:
    return f"alpha, v and W_O reproduce the attention output to {check['worst']:.0e} (bound {check['worst_bound']:.0e})"


def _whose(result: SensitivityResult | KnockoutResult) -> str:
    if "responses" in result.checkpoint:
        return "given"
    return "its own" if result.conventions.response == "generated" else "the reference"


def _with_interval(curve: Curve) -> str:
    return f"{curve.mean:.3f} [{curve.ci_low:.3f}, {curve.ci_high:.3f}]"
