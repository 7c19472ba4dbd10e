"""Maps of single heads: a column per layer, a row per head, all maps of a figure on one colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsm_probe.runner.labels import wrapped
from lsm_probe.runner.result import Floats
from lsm_probe.runner.style import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure

_CELL = 0.16
"""Side of a head's cell, inches."""


@dataclass(frozen=True)
class Scale:
    """Colours of the numbers: red, white, blue.

    Attributes:
        label: name of the numbers.
        middle: the number that is white.
        reach: distance from the middle at which the colours saturate.
        reverse: blue below the middle and red above.
    """

    label: str
    middle: float
    reach: float
    reverse: bool = False


@dataclass(frozen=True)
class HeadMap:
    """The content of one map.

    Attributes:
        title: text above the map.
        values: `[layers, heads]`; NaN stays empty.
        layers: numbers of these layers.
        share: area of each head's square, `[layers, heads]`, relative to the largest in its layer; None: all full size.
        outlined: heads with a frame, `[layers, heads]`.
    """

    title: str
    values: Floats
    layers: Sequence[int]
    share: Floats | None = None
    outlined: NDArray[np.bool_] | None = None


def plot_head_map(shown: HeadMap, scale: Scale, ax: Axes) -> PatchCollection:
    """Draws a map and returns its squares, which a colour bar needs."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    area = np.ones(shown.values.shape) if shown.share is None else shown.share / shown.share.max(1, keepdims=True)
    known = np.isfinite(shown.values)
    sides = 0.94 * np.sqrt(area[known])
    places = np.argwhere(known)
    squares = [
        Rectangle((x - side / 2, head - side / 2), side, side)
        for (x, head), side in zip(places, sides, strict=True)
    ]  # fmt: skip
    frames = np.zeros(len(places)) if shown.outlined is None else 0.9 * shown.outlined[known]
    drawn = PatchCollection(squares, cmap="RdBu_r" if scale.reverse else "RdBu", linewidths=frames, edgecolors="black")
    drawn.set_array(shown.values[known])
    drawn.set_clim(scale.middle - scale.reach, scale.middle + scale.reach)
    ax.add_collection(drawn)
    depth, heads = shown.values.shape
    ax.set(xlim=(-0.5, depth - 0.5), ylim=(heads - 0.5, -0.5), aspect="equal", facecolor="0.85")
    step = max(1, depth // 10)
    ax.set_xticks(range(0, depth, step), [str(layer) for layer in shown.layers[::step]])
    ax.set_yticks(range(0, heads, max(1, heads // 8)))
    ax.set_title(wrapped(shown.title, _width(depth), 9), fontsize=9)
    ax.tick_params(labelsize=8, length=2)
    return drawn


def _width(depth: int) -> float:
    """Width of a map with this number of layers, inches."""
    return max(_CELL * depth, 3)


def head_figure(rows: Sequence[Sequence[HeadMap]], scales: Sequence[Scale], xlabel: str = "layer") -> Figure:
    """Maps in rows below each other; each row has a scale, and equal scales share one colour bar.

    Args:
        rows: the maps; all rows have the same number of maps.
        scales: one for each row.
        xlabel: label below the last row.
    """
    depth = max(len(shown.layers) for row in rows for shown in row)
    heads = [max(shown.values.shape[1] for shown in row) for row in rows]
    width = len(rows[0]) * (_width(depth) + 0.5) + 1.2
    title_lines = [max(wrapped(shown.title, _width(depth), 9).count("\n") for shown in row) for row in rows]
    height = sum(_CELL * count + 0.55 for count in heads) + 0.15 * sum(title_lines) + 0.3
    figure = new_figure(width, height)
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False, height_ratios=heads)
    for row, scale, own in zip(rows, scales, axes, strict=True):
        for shown, ax in zip(row, own, strict=True):
            plot_head_map(shown, scale, ax)
        own[0].set_ylabel("head", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel(xlabel, fontsize=8)
    for scale in dict.fromkeys(scales):
        of_scale = [i for i, own in enumerate(scales) if own == scale]
        collection = axes[of_scale[-1], -1].collections[0]
        bar = figure.colorbar(collection, ax=list(axes[of_scale].flat), shrink=0.9, pad=0.02, aspect=12 * len(of_scale))
        bar.set_label(scale.label, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return figure
