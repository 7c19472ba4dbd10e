"""Importance: by layer, and by layer and module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.runner.checkpoint_styles import result_labels
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
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure


def plot_layers(results: Sequence[ImportanceResult], ax: Axes | None = None) -> Axes:
    """Draws each layer's share of the importance of all layers, with the 95 % interval of I_layer as a band.

    It draws shares because a model with worse responses has larger gradients everywhere.
    """
    ax = axes_or_new(ax, 6, 4)
    for result, style in zip(results, curve_styles(results), strict=True):
        plot_with_band(range(result.n_layers), result.share_by_layer(), ax, **style)
    ax.set(xlabel="layer", ylabel="share of the importance of all layers", ylim=(0, None))
    return ax


def plot_modules(result: ImportanceResult, ax: Axes | None = None, norm: LogNorm | None = None) -> Axes:
    """Draws the mean importance of a weight by layer and module as a heat map, on a logarithmic scale.

    Args:
        result: what to draw.
        ax: axes to draw on; new ones if None.
        norm: a scale that several maps share, with one colour bar elsewhere; by default the map gets its own scale and
            bar.
    """
    import seaborn as sns

    ax = axes_or_new(ax, 8, 3)
    own: dict[str, Any] = {"cbar_kws": {"label": "nats per weight"}} if norm is None else {"cbar": False}
    table = result.by_module("mean").T
    sns.heatmap(table, ax=ax, cmap="viridis", norm=norm or _scale([result]), yticklabels=result.modules, **own)
    ax.set(title=result_labels([result])[0], xlabel="layer")
    ax.tick_params(axis="y", rotation=0)
    return ax


def _scale(results: Sequence[ImportanceResult]) -> LogNorm | None:
    """Scale from the smallest to the largest mean importance in all results."""
    from matplotlib.colors import LogNorm

    values = np.concatenate([result.by_module("mean").ravel() for result in results])
    positive = values[values > 0]
    return LogNorm(positive.min(), positive.max()) if len(positive) else None


@with_own_settings
def importance_figure(results: Sequence[ImportanceResult]) -> Figure:
    """The curves by layer of all results on top, below them heat maps on one scale, at most two in a row."""
    import seaborn as sns
    from matplotlib.cm import ScalarMappable

    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    with sns.axes_style("ticks"):
        figure = new_figure(5.5 * columns + 1.5, legend_height(4 + 2.2 * rows, results))
        grid = figure.add_gridspec(1 + rows, columns, height_ratios=[3.6, *[2.2] * rows])
        top = figure.add_subplot(grid[0, :])
        maps = [figure.add_subplot(grid[1 + i // columns, i % columns]) for i in range(len(results))]
        plot_layers(results, top)
        add_legend_below(figure, top)
        sns.despine(ax=top)
        norm = _scale(results)
        for result, name, ax in zip(results, result_labels(results), maps, strict=True):
            plot_modules(result, ax, norm)
            ax.set_title(name, fontsize=9)
            ax.tick_params(labelsize=8)
        if norm is not None:
            figure.colorbar(ScalarMappable(norm, "viridis"), ax=maps, label="nats per weight", pad=0.02)
    return figure


def save_importance(results: Sequence[ImportanceResult], out: Path) -> None:
    """Write the figure, and a row for each checkpoint and parameter."""
    save_figure(importance_figure(results), out / "importance")
    frame = pd.concat([result.to_frame() for result in results], ignore_index=True)
    # Importance of single weights is too small for the six decimals of other tables.
    frame["mean"] = [f"{value:.6e}" for value in frame["mean"]]
    save_frame(frame, out / "importance.csv")
