"""Knockout figures: falls in log-probability without instruction or source, by layer and by head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lsm_probe.models.segments import Segment
from lsm_probe.probes.knockout.result import SEGMENTS, KnockoutResult
from lsm_probe.runner.checkpoint_styles import result_labels
from lsm_probe.runner.head_maps import HeadMap, Scale, head_figure
from lsm_probe.runner.picture_files import save_figure, save_frame, save_frames
from lsm_probe.runner.result import Curve
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


def plot_falls(
    results: Sequence[KnockoutResult], segment: Segment = Segment.INSTRUCTION, ax: Axes | None = None
) -> Axes:
    """Draws the fall in the response's log-probability without a segment, by the window's middle layer.

    Args:
        results: all with the same window.
        segment: `INSTRUCTION` or `SOURCE`.
        ax: axes to draw on; new ones if None.
    """
    ax = _plot_curves(results, [result.falls(segment) for result in results], ax)
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set(title=f"without the {segment.name.lower()}", ylabel="fall of log-probability (nats per token)")
    return ax


def plot_causal_eta(results: Sequence[KnockoutResult], ax: Axes | None = None) -> Axes:
    """Draws causal eta by layer, with gaps where a fall is not above 0."""
    ax = _plot_curves(results, [result.causal_eta() for result in results], ax)
    ax.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
    ax.set(title="causal η", ylabel="instruction's share of both falls", ylim=(0, 1))
    return ax


@with_own_settings
def knockout_figure(results: Sequence[KnockoutResult]) -> Figure:
    """Both falls side by side. Causal eta is undefined in many layers, so it is only in `knockout.csv`."""
    import seaborn as sns

    with sns.axes_style("ticks"):
        figure = new_figure(9, legend_height(4, results))
        first, second = figure.subplots(1, 2)
        plot_falls(results, Segment.INSTRUCTION, first)
        plot_falls(results, Segment.SOURCE, second)
        second.set_ylabel("")
        for ax in (first, second):
            ax.set_xlabel(f"layer (middle of {results[0].conventions.window})")
            sns.despine(ax=ax)
        add_legend_below(figure, first)
    return figure


@with_own_settings
def knockout_heads_figure(results: Sequence[KnockoutResult]) -> Figure:
    """Falls with a segment masked for one head: a row for each result, instruction left and source right.

    Frames mark instruction heads on the left, source heads on the right (see [`KnockoutResult.head_kinds`]), and heads
    of kind `both` on either side.
    """
    rows = []
    for result, name in zip(results, result_labels(results), strict=True):
        kinds = result.head_kinds()
        rows.append(
            [
                HeadMap(
                    f"{name}, {segment.name.lower()}",
                    result.head_falls(segment).mean,
                    result.head_layers,
                    outlined=(kinds == segment.name.lower()) | (kinds == "both"),
                )
                for segment in SEGMENTS
            ]
        )
    reach = max(float(np.abs(shown.values).max()) for row in rows for shown in row)
    scale = Scale("fall of log-probability (nats per token)", 0, reach, reverse=True)
    return head_figure(rows, [scale] * len(rows), "layer (framed: heads that matter)")


def knockout_figures(results: Sequence[KnockoutResult]) -> list[Figure]:
    """Falls by layer, and maps of single heads if these were masked."""
    heads = [knockout_heads_figure(results)] if all(result.head_layers for result in results) else []
    return [knockout_figure(results), *heads]


def save_knockout(results: Sequence[KnockoutResult], out: Path) -> None:
    """Write the figure, and its numbers as a row for each checkpoint and layer. If single heads were masked, also write
    their figure and a row for each checkpoint, layer and head."""
    save_figure(knockout_figure(results), out / "knockout")
    save_frames(results, out / "knockout.csv")
    if all(result.head_layers for result in results):
        save_figure(knockout_heads_figure(results), out / "knockout_heads")
        frames = [result.head_frame() for result in results]
        save_frame(pd.concat(frames, ignore_index=True), out / "knockout_heads.csv")


def _plot_curves(results: Sequence[KnockoutResult], curves: Sequence[Curve], ax: Axes | None) -> Axes:
    ax = axes_or_new(ax, 5, 4)
    for curve, style in zip(curves, curve_styles(results), strict=True):
        plot_with_band(range(len(curve.mean)), curve, ax, **style)
    return ax
