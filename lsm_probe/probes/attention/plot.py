"""Eta by layer and by head: curves with intervals, maps, and the numbers behind the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lsm_probe.probes.attention.result import AttentionResult, head_eta_difference
from lsm_probe.runner.checkpoint_styles import result_labels
from lsm_probe.runner.head_maps import HeadMap, Scale, head_figure
from lsm_probe.runner.multiple_testing import SIGNIFICANT
from lsm_probe.runner.picture_files import save_figure, save_frame
from lsm_probe.runner.style import (
    add_legend_below,
    axes_or_new,
    curve_styles,
    legend_height,
    new_figure,
    plot_with_band,
    with_own_settings,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_eta(results: Sequence[AttentionResult], ax: Axes | None = None, **style: Any) -> Axes:
    """Draw eta by layer for each result, with its 95 % interval as a band; controls are dashed.

    Args:
        results: read under their own conventions.
        ax: axes to draw on; new ones if None.
        style: passed to every `Axes.plot`.
    """
    ax = axes_or_new(ax, 6, 4)
    for result, curve_style, label in zip(results, curve_styles(results), _labels(results), strict=True):
        curve_style |= {"label": label, "linestyle": "--" if result.is_control else "-"}
        plot_with_band(range(result.n_layers), result.eta(), ax, **curve_style | style)
    ax.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
    ax.set(
        xlabel="layer",
        ylabel="instruction proportion η (0.5 = balanced)",
        ylim=(0, 1),
        xlim=(-0.5, max(r.n_layers for r in results) - 0.5),
    )
    return ax


@with_own_settings
def eta_figure(results: Sequence[AttentionResult]) -> Figure:
    """Eta under both `segment` conventions side by side, because source length moves them in opposite directions."""
    import seaborn as sns

    with sns.axes_style("ticks"):
        figure = new_figure(9, legend_height(4, results))
        axes = figure.subplots(1, 2, sharey=True)
        for ax, segment in zip(axes, ("mean", "sum"), strict=True):
            plot_eta([r.with_conventions(segment=segment) for r in results], ax=ax)
            ax.set_title(f"segment = {segment}", fontsize=10)
            sns.despine(ax=ax)
        axes[1].set_ylabel("")
        add_legend_below(figure, axes[0])
    return figure


@with_own_settings
def eta_heads_figure(results: Sequence[AttentionResult]) -> Figure:
    """Eta of single heads, one map per result under its own conventions; a head's area is its share of its layer.

    For two results with the same samples and heads, a map below shows their difference. It frames the heads that have
    changed (p below 0.05, corrected for the number of heads), or the other heads if these are fewer.
    """
    maps = [
        HeadMap(label, result.head_eta().mean, range(result.n_layers), result.head_share())
        for result, label in zip(results, _labels(results), strict=True)
    ]
    scales = [Scale("η of the head (0.5 = balanced)", 0.5, 0.5)] * len(maps)
    if len(results) == 2 and results[0].ids == results[1].ids and maps[0].values.shape == maps[1].values.shape:
        found = head_eta_difference(*results)
        first, second = result_labels(results)
        changed = found.p < SIGNIFICANT
        most = changed.mean() > 0.5
        title = f"{second} minus {first} (framed: {'no change shown' if most else 'changed'})"
        maps.append(HeadMap(title, found.mean, maps[0].layers, outlined=~changed if most else changed))
        scales.append(Scale("difference of η", 0, 1))
    xlabel = "layer (area of η's squares: the head's share of its layer)"
    return head_figure([[shown] for shown in maps], scales, xlabel)


def attention_figures(results: Sequence[AttentionResult]) -> list[Figure]:
    """Eta by layer of all results, and maps of single heads without the controls."""
    return [eta_figure(results), eta_heads_figure([result for result in results if not result.is_control])]


def save_attention(results: Sequence[AttentionResult], out: Path) -> None:
    """Write curves and their numbers (a row for each checkpoint, segment convention and layer), maps of
    single heads and theirs (a row for each checkpoint, layer and head, under the results' own conventions)."""
    save_figure(eta_figure(results), out / "eta")
    frames = []
    for result in results:
        for segment in ("mean", "sum"):
            frames.append(result.with_conventions(segment=segment).to_frame())
            frames[-1].insert(1, "segment", segment)
    save_frame(pd.concat(frames, ignore_index=True), out / "eta.csv")
    save_figure(eta_heads_figure(results), out / "eta_heads")
    save_frame(pd.concat([result.head_frame() for result in results], ignore_index=True), out / "eta_heads.csv")


def _labels(results: Sequence[AttentionResult]) -> list[str]:
    names = result_labels(results)
    return [f"{name} ({result.measured_on})" for result, name in zip(results, names, strict=True)]
