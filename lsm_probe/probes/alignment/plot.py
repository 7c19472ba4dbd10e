"""Alignment figures: speech and transcript in one plane (arXiv 2410.03798, figure 6), and similarity by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsm_probe.probes.alignment.result import ALPHA, AlignmentResult
from lsm_probe.runner.checkpoint_styles import CheckpointStyle, result_labels, result_styles
from lsm_probe.runner.picture_files import save_figure, save_frame, save_frames
from lsm_probe.runner.style import axes_or_new, curve_styles, new_figure, plot_with_band, with_own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

_MODALITIES = (("speech", "o"), ("transcript", "^"))
_TRANSCRIPT = "#808080"
_JOINED = 100
"""Maximum number of samples whose two points are joined by a line; more lines would hide the points."""
_LONGEST_NAME = 28
_TWO_COLUMNS = 38
"""Maximum label length for a legend in two columns."""
_PALE: dict[str, Any] = {"linewidth": 5, "alpha": 0.3, "marker": "", "solid_capstyle": "round"}
_DASHED: dict[str, Any] = {"linestyle": "--", "linewidth": 1, "marker": ""}
_DOTTED: dict[str, Any] = {"linestyle": ":", "linewidth": 0.8, "marker": ""}
_HOLLOW: dict[str, Any] = {"linestyle": "", "markersize": 5, "markerfacecolor": "white"}


def plot_plane(results: Sequence[AlignmentResult], ax: Axes | None = None, layer: int | None = None) -> Axes:
    """Draw the plane of a single result; see [`plot_points`]."""
    (result,) = results
    return plot_points(result, layer, ax=ax)


def plot_points(
    result: AlignmentResult, layer: int | None = None, ax: Axes | None = None, *, color: str | None = None
) -> Axes:
    """Draws speech and transcript of one state in one plane by joint t-SNE, with the density contours of each.

    Contours enclose 20, 40, 60, 80 and 95 % of a set's density; a set whose points lie on one line has no contours. If
    there are at most 100 samples, a line joins the two points of each sample.

    Args:
        result: what to draw.
        layer: number of a state; a negative number counts back from the last kept state; by default the result's own
            `plot_layer`.
        ax: axes to draw on; new ones if None.
        color: colour of the speech points; by default the checkpoint's colour. Transcripts are grey.
    """
    import seaborn as sns
    from matplotlib.collections import LineCollection

    ax = axes_or_new(ax, 4.5, 4.5)
    both = result.embed_2d(result.plot_layer if layer is None else layer)
    if len(result.samples) <= _JOINED:
        ax.add_collection(LineCollection(list(np.stack(both, 1)), colors="0.75", linewidths=0.5, zorder=1))
    size = float(np.clip(600 / len(result.samples), 4, 18))
    colors = (color or result_styles([result])[0].color, _TRANSCRIPT)
    for points, color, (label, marker) in zip(both, colors, _MODALITIES, strict=True):
        x, y = points.T
        if _spans_a_plane(points):
            sns.kdeplot(x=x, y=y, ax=ax, color=color, levels=(0.05, 0.2, 0.4, 0.6, 0.8), linewidths=0.9, zorder=2)
        style: dict[str, Any] = {"color": color, "marker": marker, "edgecolors": "white", "linewidths": 0.3}
        ax.scatter(x, y, size, label=label, zorder=3, **style)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel="", ylabel="", xticks=[], yticks=[])
    return ax


def plot_curve(results: Sequence[AlignmentResult], name: str, ax: Axes, *, dashed: bool = False) -> None:
    """Draws one of the result's curves for each result; a curve that is not dashed has its 95 % interval as a band."""
    for result, style in zip(results, _styles(results), strict=True):
        curve = result.curves()[name]
        if dashed:
            ax.plot(result.layers, curve.mean, **style | _DASHED)
        else:
            plot_with_band(result.layers, curve, ax, **style)


@with_own_settings
def alignment_figure(results: Sequence[AlignmentResult]) -> Figure:
    """One plane of a state for each checkpoint, and beside them the numbers by state for all checkpoints.

    Args:
        results: of one or several checkpoints; up to four are easy to read.
    """
    import seaborn as sns

    columns = -(-len(results) // 2)
    planes_width = 4.6 if len(results) == 1 else 3.0 * columns
    with sns.axes_style("ticks"), sns.plotting_context("paper"):
        figure = new_figure(planes_width + 6.4, 6)
        halves: Any = figure.subfigures(1, 2, width_ratios=(planes_width, 6.4), wspace=0.02)
        _draw_planes(results, halves[0])
        _draw_curves(results, halves[1])
    return figure


def save_alignment(results: Sequence[AlignmentResult], out: Path) -> None:
    """Write the figure, a row for each checkpoint and state, and the points of the planes."""
    save_figure(alignment_figure(results), out / "alignment")
    save_frames(results, out / "alignment.csv")
    save_frame(point_frame(results), out / "alignment_points.csv")


def point_frame(results: Sequence[AlignmentResult]) -> pd.DataFrame:
    """Coordinates of the points in the planes: a row for each checkpoint, modality and sample."""
    frames = []
    for result in results:
        for (modality, _), points in zip(_MODALITIES, result.embed_2d(result.plot_layer), strict=True):
            about = {
                "checkpoint": result.name,
                "id": result.ids,
                "modality": modality,
                "state": result.state(result.plot_layer),
            }
            frames.append(pd.DataFrame({**about, "x": points[:, 0], "y": points[:, 1]}))
    return pd.concat(frames, ignore_index=True)


def _draw_planes(results: Sequence[AlignmentResult], figure: SubFigure) -> None:
    rows, columns = min(len(results), 2), -(-len(results) // 2)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    names, styles = result_labels(results, _LONGEST_NAME), result_styles(results)
    for ax, result, name, style in zip(axes, results, names, styles, strict=False):
        plot_points(result, ax=ax, color=style.color)
        ax.set_title(
            f"{name}\nt-SNE of state {result.state(result.plot_layer)}, perplexity {result.perplexity:g}", fontsize=9
        )
    for ax in axes[len(results) :]:
        ax.set_axis_off()
    figure.legend(
        handles=modality_key(styles), loc="outside lower center", ncols=min(2, columns), frameon=False, fontsize=9
    )


def _draw_curves(results: Sequence[AlignmentResult], figure: SubFigure) -> None:
    import seaborn as sns
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots(2, 2, sharex=True)
    cosines, cka, recall, distances = axes.ravel()
    # Wide and pale, so that it stays visible under the other curve, which often covers it.
    for result, style in zip(results, _styles(results), strict=True):
        cosines.plot(result.layers, result.curves()["unpaired_cosine"].mean, **style | _PALE)
    for name, ax in (("cosine", cosines), ("cka", cka), ("retrieval", recall)):
        plot_curve(results, "paired_cosine" if name == "cosine" else name, ax)
        plot_curve(results, f"standardised_{name}", ax, dashed=True)
    for ax in (cosines, cka):
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    _draw_levels(recall, [result.chance() for result in results])
    cosines.set(title="cosine of speech and transcript", ylabel="cosine", ylim=(None, 1.02))
    cka.set(title="similarity of geometry", ylabel="debiased linear CKA", ylim=(None, 1.02))
    recall.set(title="retrieval of the partner", ylabel="R@1, mean of both directions", ylim=(-0.02, 1.02))
    _draw_distances(results, distances)
    for ax in axes.flat:
        ax.title.set_fontsize(9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        sns.despine(ax=ax)
    for ax in axes[1]:
        ax.set_xlabel("state (0: embeddings)")
    names = result_labels(results, _LONGEST_NAME)
    labels = [f"{name} ({len(r.samples)} samples)" for name, r in zip(names, results, strict=True)]
    lines = recall.get_lines()[: len(results)]
    columns = 2 if max(map(len, labels)) <= _TWO_COLUMNS else 1
    figure.legend(lines, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    figure.legend(handles=_key(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _draw_distances(results: Sequence[AlignmentResult], ax: Axes) -> None:
    plot_curve(results, "centroid_distance", ax)
    for result, style in zip(results, _styles(results), strict=True):
        alike = result.mmd()["p_value"] >= ALPHA
        ax.plot(np.array(result.layers)[alike], result.curves()["centroid_distance"].mean[alike], **style | _HOLLOW)
    floors = [result.centroid_floor() for result in results]
    _draw_levels(ax, floors)
    # Logarithmic above the noise level, linear below it, because 0 is possible.
    ax.set_yscale("symlog", linthresh=min(floors), linscale=0.5)
    ax.set(title="distance of the centroids", ylabel="distance / spread", ylim=(-0.1 * min(floors), None))


def _draw_levels(ax: Axes, levels: Sequence[float]) -> None:
    for level in sorted(set(levels)):
        ax.axhline(level, color="0.5", zorder=0, **_DOTTED)


def modality_key(styles: Sequence[CheckpointStyle]) -> list[Line2D]:
    """Legend for the points in the planes: speech has the colour of its checkpoint."""
    from matplotlib.lines import Line2D

    speech = styles[0].color if len(styles) == 1 else "0.25"
    named = ("speech" if len(styles) == 1 else "speech (in the checkpoint's colour)", "transcript")
    return [
        Line2D([], [], linestyle="", color=color, marker=marker, label=label)
        for label, color, (_, marker) in zip(named, (speech, _TRANSCRIPT), _MODALITIES, strict=True)
    ]


def _key() -> list[Line2D]:
    """Legend for the line styles, which are the same for all checkpoints."""
    from matplotlib.lines import Line2D

    kinds = {
        "other transcripts": _PALE,
        "standardised": _DASHED,
        "level of chance or noise": _DOTTED,
        f"MMD: p ≥ {ALPHA:g}": _HOLLOW,
    }
    return [Line2D([], [], **{"color": "0.3", "marker": "o", **style}, label=label) for label, style in kinds.items()]


def _styles(results: Sequence[AlignmentResult]) -> list[dict[str, Any]]:
    """Colour and marker of each checkpoint's curves."""
    return [{**style, "label": None, "linewidth": 1.2} for style in curve_styles(results)]


def _spans_a_plane(points: NDArray[np.float64]) -> bool:
    """Whether a density of two dimensions can be estimated: at least 3 points that are not all on a line."""
    if len(points) < 3:
        return False
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return bool(spread[1] > 1e-6 * spread[0])
