"""Importance: by layer, and by layer and module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.runner.looks import result_labels
from lsm_probe.runner.picture_files import save_figure, save_frame
from lsm_probe.runner.style import (
    add_legend_below,
    axes_or_new,
    curve_looks,
    legend_height,
    new_figure,
    plot_with_band,
    with_own_settings,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_layers(results: Sequence[ImportanceResult], ax: Axes | None = None) -> Axes:
    """Draws each layer's share of the importance of all layers, with the 95 % interval of I_layer as a band.

    Shares, because a model that answers worse has larger gradients everywhere.
    """
    ax = axes_or_new(ax, 6, 4)
    for result, look in zip(results, curve_looks(results), strict=True):
        plot_with_band(range(result.n_layers), result.share_by_layer(), ax, **look)
    ax.set(xlabel="layer", ylabel="share of the importance of all layers", ylim=(0, None))
    return ax


def plot_modules(result: ImportanceResult, ax: Axes | None = None) -> Axes:
    """Draws the mean importance of a weight by layer and module as a heat map, on a logarithmic scale."""
    import seaborn as sns
    from matplotlib.colors import LogNorm

    ax = axes_or_new(ax, 8, 3)
    table = result.by_module("mean").T
    positive = table[table > 0]
    norm = LogNorm(positive.min(), positive.max()) if len(positive) else None
    sns.heatmap(
        table, ax=ax, cmap="viridis", norm=norm, yticklabels=result.modules, cbar_kws={"label": "nats a weight"}
    )
    ax.set(title=result_labels([result])[0], xlabel="layer")
    ax.tick_params(axis="y", rotation=0)
    return ax


@with_own_settings
def importance_figure(results: Sequence[ImportanceResult]) -> Figure:
    """The layers of all results on top, a heat map of each below."""
    import seaborn as sns

    with sns.axes_style("ticks"):
        figure = new_figure(9, legend_height(4 + 3 * len(results), results))
        top, *maps = figure.subplots(1 + len(results), 1, height_ratios=[4, *[3] * len(results)])
        plot_layers(results, top)
        add_legend_below(figure, top)
        sns.despine(ax=top)
        for result, ax in zip(results, maps, strict=True):
            plot_modules(result, ax)
    return figure


def save_importance(results: Sequence[ImportanceResult], out: Path) -> None:
    """Write the figure, and a row for each checkpoint and parameter."""
    save_figure(importance_figure(results), out / "importance")
    frame = pd.concat([result.to_frame() for result in results], ignore_index=True)
    # Importance of single weights is far below the six decimals of other tables.
    frame["mean"] = [f"{value:.6e}" for value in frame["mean"]]
    save_frame(frame, out / "importance.csv")
