"""Importance's output: the terminal table, the line about each result, and the report section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_probe.probes.importance.plot import importance_figure
from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.result import Curve, layer_groups
from lsm_probe.runner.tables import NONE, Table, layer_group_names, shown, whose


def importance_table(results: Sequence[ImportanceResult]) -> Table:
    """Each module's importance in six groups of layers, as shares of all: a row for each checkpoint and module."""
    rows = []
    for result in results:
        by_module = np.nan_to_num(result.by_module())
        for name, values in {"all": by_module.sum(1), **dict(zip(result.modules, by_module.T, strict=True))}.items():
            groups = layer_groups(result.n_layers)
            shares = [f"{100 * values[group].sum() / by_module.sum():.1f}" for group in groups]
            rows.append([result.name, name, *shares, f"{values.sum():.1f}"])
    return Table(
        "importance of weights |θ · ∂L/∂θ|: share of the total over all layers, %",
        ["checkpoint", "module", *layer_group_names([result.n_layers for result in results]), "all"],
        rows,
        "all (last column): nats, sum over the weights of the layers' matrices, mean over samples",
        text_columns=2,
    )


def importance_note(result: ImportanceResult) -> str:
    note = f"responses: {whose(result)}; mode {result.conventions.mode}; peak at layer {result.distribution().argmax()}"
    if result.ablation is not None:
        values = result.ablation["perplexity"]
        tokens = max(parameter["shape"][0] for parameter in result.parameters if parameter["layer"] is None)
        broken = tokens * (values["none"] or 1)
        found = ", ".join(f"{which} {_perplexity(value, broken)}" for which, value in values.items())
        note += f"; perplexity with {100 * result.ablation['share']:g} % of each matrix set to 0: {found}"
    if result.not_trained:
        note += f"; not trained, so not measured: {', '.join(result.not_trained)}"
    return note


def _perplexity(value: float | None, broken: float) -> str:
    """A perplexity as precise as other machines reproduce it. For a model that is worse than guessing among all tokens,
    that is only the order of magnitude."""
    if value is None or not np.isfinite(value):
        return "out of range"
    return f"{value:.4g}" if value <= broken else f"about 1e{np.log10(value):.0f}"


def importance_section(measurement: Measurement, results: Sequence[ImportanceResult], everything: Any) -> Section:
    """Shares of the layers, and their shift from the first checkpoint to the others."""
    return Section(
        measurement.name,
        "Importance by layer",
        "Importance is how much the loss would change, to first order, if a weight were set to 0. Layers are "
        "compared by their share of the total over all layers, because a model with worse answers has larger "
        "gradients everywhere.",
        [picture(importance_figure(results), "importance", "Importance by layer and by module")],
        [_report_table(results)],
    )


def _report_table(results: Sequence[ImportanceResult]) -> Table:
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
    return Table(f"Importance by layer, and its shift from {results[0].name}", columns, rows)


def _percent(found: Any, place: int) -> str:
    mean, low, high = (100 * float(end[place]) for end in (found.mean, found.ci_low, found.ci_high))
    return f"{mean:.1f} %" + (f" [{low:.1f}, {high:.1f}]" if np.isfinite(low) else "")


def _curve(found: Any, digits: int) -> str:
    """A stored number, with its interval if it has one."""
    if not isinstance(found, dict):
        return f"{found:.{digits}f}"
    return shown(Curve(*(np.asarray(found[end], dtype=np.float64) for end in ("mean", "ci_low", "ci_high"))), digits)
