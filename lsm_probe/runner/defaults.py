"""Default table, figure and report section for a measurement that defines none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.result import MeasurementResult
from lsm_probe.runner.style import (
    add_legend_below,
    curve_styles,
    legend_height,
    new_figure,
    plot_with_band,
    with_own_settings,
)
from lsm_probe.runner.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LONGEST = 40
"""Maximum number of rows of a frame that are shown."""


def frame_table(results: Sequence[MeasurementResult]) -> Table:
    """The frames of results as one table, for a measurement that defines no table."""
    frame = pd.concat([result.to_frame() for result in results], ignore_index=True)
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in frame.to_numpy()]
    left_out = len(cells) - _LONGEST
    note = f"{left_out} more rows are in the CSV file" if left_out > 0 else ""
    return Table(results[0].NAME, list(map(str, frame.columns)), cells[:_LONGEST], note)


def plot_values(results: Sequence[MeasurementResult], ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the first value of `BY_SAMPLE` with its 95 % interval: a line over layers, or a point for each checkpoint.

    Args:
        results: of one measurement.
        ax: axes to draw on; new ones if None.
        style: passed to matplotlib.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.subplots(layout="constrained")[1]
    name = next(name for name in results[0].BY_SAMPLE if np.ndim(getattr(results[0], name)) < 3)
    for i, (result, curve_style) in enumerate(zip(results, curve_styles(results), strict=True)):
        found = result.mean(getattr(result, name))
        if np.ndim(found.mean):
            plot_with_band(range(len(found.mean)), found, ax, **curve_style | style)
        else:
            reach = np.array([[found.mean - found.ci_low], [found.ci_high - found.mean]]).clip(min=0)
            ax.errorbar([i], [float(found.mean)], reach, linestyle="none", capsize=3, **curve_style | style)
    if np.ndim(found.mean):
        ax.set_xlabel("layer")
    else:
        ax.set_xticks([])
    ax.set_ylabel(name.replace("_", " "))
    return ax


@with_own_settings
def results_figure(results: Sequence[MeasurementResult]) -> Figure:
    """All results on one pair of axes, drawn as in [`MeasurementResult.plot`]."""
    figure = new_figure(6, legend_height(4.0, results))
    ax = figure.subplots()
    if results[0].PLOT is None:
        plot_values(results, ax)
    else:
        for result in results:
            result.plot(ax=ax)
    add_legend_below(figure, ax)
    return figure


def default_section(measurement: Measurement, results: Sequence[MeasurementResult], everything: Any) -> Section:
    """The figure and the table of a measurement, introduced by its help."""
    title = measurement.title or measurement.name.replace("_", " ").replace("-", " ").capitalize()
    figures = enumerate(measurement.make_figures(results))
    pictures = [picture(figure, f"{measurement.name}-{i}", title) for i, figure in figures]
    intro = " ".join(measurement.help.split("\n\n")[0].split())
    return Section(measurement.name, title, intro, pictures, [measurement.make_table(results)])
