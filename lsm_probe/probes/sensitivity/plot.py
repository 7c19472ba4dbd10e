"""Sensitivity to instruction and source: bars, and curves over the tokens of the response."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.runner.checkpoint_styles import result_labels, result_styles
from lsm_probe.runner.picture_files import save_figure, save_frame, save_frames
from lsm_probe.runner.style import (
    add_legend_below,
    axes_or_new,
    curve_styles,
    legend_height,
    new_figure,
    with_own_settings,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TOKENS = 32
"""Maximum number of response tokens that are drawn."""
_LONGEST_TICK = 28
_MOST = "maximum: log of the pool's size"
_INSIDE: dict[str, Any] = {"ha": "right", "va": "bottom"}


def plot_sensitivity(results: Sequence[SensitivityResult], ax: Axes | None = None) -> Axes:
    """Draws D_i and D_s of each result as bars with 95 % intervals, and the ceiling that the pool sizes set.

    Args:
        results: read under their own conventions, which should be the same.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax, 6, 1.6 + 0.5 * len(results))
    colors = [style.color for style in result_styles(results)]
    styles: tuple[dict[str, Any], ...] = ({"color": colors}, {"color": "white", "edgecolor": colors, "hatch": "///"})
    for i, (label, style) in enumerate(zip(("instruction", "source"), styles, strict=True)):
        curves = [getattr(result, label)() for result in results]
        means = np.array([float(curve.mean) for curve in curves])
        # If all samples are equal, mean and interval still differ by rounding.
        errors = np.array([[c.mean - c.ci_low, c.ci_high - c.mean] for c in curves]).T.clip(min=0).tolist()
        places = np.arange(len(results)) + (i - 0.5) * 0.38
        ax.barh(places, means, 0.36, xerr=errors, capsize=3, **style)
    ceiling = max(max(result.ceilings()) for result in results)
    if results[0].conventions.per == "response":
        ax.axvline(ceiling, color="0.6", linewidth=0.8, linestyle=":", label=_MOST)
        ax.annotate(f"{_MOST} ", (ceiling, 1), xycoords=("data", "axes fraction"), fontsize=8, **_INSIDE)
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_yticks(range(len(results)), result_labels(results, _LONGEST_TICK))
    ax.set_ylim(len(results) - 0.4, -0.6)
    ax.set(title="solid: instruction, hatched: source", xlabel=f"sensitivity D (nats per {results[0].conventions.per})")
    return ax


def plot_tokens(results: Sequence[SensitivityResult], ax: Axes | None = None) -> Axes:
    """Draws D_i (solid) and D_s (dashed) for the first tokens of the response, mean over samples."""
    ax = axes_or_new(ax, 5, 4)
    for result, style in zip(results, curve_styles(results), strict=True):
        frame = token_frame([result])
        ax.plot(frame["token"], frame["D_instruction"], **style)
        ax.plot(frame["token"], frame["D_source"], **style | {"linestyle": "--", "label": None})
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set(title="solid: instruction, dashed: source", xlabel="token of the response")
    ax.set_ylabel("sensitivity D (nats per token)")
    return ax


@with_own_settings
def sensitivity_figure(results: Sequence[SensitivityResult]) -> Figure:
    """Both pictures side by side."""
    import seaborn as sns

    with sns.axes_style("ticks"):
        figure = new_figure(11, legend_height(max(4.5, 1.8 + 0.5 * len(results)), results))
        bars, tokens = figure.subplots(1, 2)
        plot_sensitivity(results, bars)
        plot_tokens(results, tokens)
        for ax in (bars, tokens):
            sns.despine(ax=ax)
        add_legend_below(figure, tokens)
    return figure


def save_sensitivity(results: Sequence[SensitivityResult], out: Path) -> None:
    """Write the figure, a row for each checkpoint and sample, and a row for each checkpoint and token."""
    save_figure(sensitivity_figure(results), out / "sensitivity")
    save_frames(results, out / "sensitivity.csv")
    save_frame(token_frame(results), out / "sensitivity_tokens.csv")


def token_frame(results: Sequence[SensitivityResult]) -> pd.DataFrame:
    """The numbers behind [`plot_tokens`]: a row for each checkpoint and token of the response."""
    frames = []
    for result in results:
        instruction, source = (values[:, :_TOKENS] for values in result.by_token())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # at a position where every response has ended
            columns = {"D_instruction": np.nanmean(instruction, 0), "D_source": np.nanmean(source, 0)}
        count = (~np.isnan(instruction)).sum(0)
        token = np.arange(instruction.shape[1])
        frames.append(pd.DataFrame({"checkpoint": result.name, "token": token, "n_samples": count, **columns}))
    return pd.concat(frames, ignore_index=True)
