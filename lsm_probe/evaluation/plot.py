"""Evaluation figure: the scores of each task, and beside them the shares of responses in the requested format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.metrics import Score
from lsm_probe.evaluation.mmlu import GROUPS
from lsm_probe.evaluation.scoring import FOLLOWING
from lsm_probe.evaluation.tables import save_tables
from lsm_probe.evaluation.text_ability_result import AVERAGE, TextAbilityResult
from lsm_probe.runner.labels import plain
from lsm_probe.runner.picture_files import save_figure
from lsm_probe.runner.result import Curve, MeasurementResult
from lsm_probe.runner.style import axes_or_new, curve_styles, legend_height, with_own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPREAD = 0.6
"""Part of a task's height that its checkpoints use."""


def _plot_scores(results: Sequence[EvaluationResult], ax: Axes, **style: Any) -> None:
    """Draw the first metric of each task, a row each, with the 95 % interval of each checkpoint."""
    names = [task.metrics[0] for task in results[0].tasks]
    scores = [_scores(result, names) for result in results]
    described = [_described(name, score) for name, score in zip(names, scores[0], strict=True)]
    titles = [f"{plain(task.title)}\n{what}" for task, what in zip(results[0].tasks, described, strict=True)]
    _plot(results, titles, _curves(scores), ax, **style)
    ax.set(title="score", xlabel="per cent")
    _cut_at_100(ax)


def plot_scores(results: Sequence[EvaluationResult], ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the first metric of each task, a row each, with the 95 % interval of each checkpoint.

    Args:
        results: of the same tasks.
        ax: axes to draw on; new ones if None.
        style: passed to matplotlib.
    """
    ax = axes_or_new(ax, 6, 1.6 + 0.5 * len(results[0].tasks))
    _plot_scores(results, ax, **style)
    return ax


def plot_text_ability(results: Sequence[TextAbilityResult], ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the MMLU accuracies, a row each, with the 95 % interval of each checkpoint; without MMLU the nats per token.

    Args:
        results: of the same questions and texts.
        ax: axes to draw on; new ones if None.
        style: passed to matplotlib.
    """
    ax = axes_or_new(ax, 6, 3)
    numbers = [result.accuracies for result in results]
    names = [name for name in (*GROUPS, AVERAGE) if name in numbers[0]]
    if not names:
        numbers = [{"nats per token": result.nats} if result.nats else {} for result in results]
        names = ["nats per token"]
    curves = [[found[name].curve if name in found else None for name in names] for found in numbers]
    _plot(results, [name.replace("_", " ") for name in names], curves, ax, **style)
    ax.set(title="MMLU accuracy" if len(names) > 1 else "text", xlabel="per cent" if len(names) > 1 else names[0])
    return ax


def _plot_following(results: Sequence[EvaluationResult], ax: Axes) -> None:
    """Draw the share of responses in the requested format; tasks that request none are left blank."""
    titles = [plain(task.title) for task in results[0].tasks]
    _plot(results, titles, _curves([_scores(result, [FOLLOWING] * len(titles)) for result in results]), ax)
    ax.set(title="responses in the asked-for form", xlabel="per cent", xlim=(-3, 103))


@with_own_settings
def evaluation_figure(results: Sequence[EvaluationResult]) -> Figure:
    """Both plots side by side."""
    import seaborn as sns
    from matplotlib.figure import Figure

    rows = len(results[0].tasks)
    with sns.axes_style("ticks"):
        figure = Figure(figsize=(10, legend_height(1.6 + 0.65 * rows, results)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _plot_following(results, right)
        _plot_scores(results, left)
        for ax in (left, right):
            sns.despine(ax=ax)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    return figure


def evaluation_figures(results: Sequence[EvaluationResult]) -> list[Figure]:
    """The one figure of an evaluation."""
    return [evaluation_figure(results)]


def save_evaluation(results: Sequence[EvaluationResult], out: Path) -> None:
    """Write the tables and the figure; `metrics.csv` holds the numbers behind the figure."""
    save_tables(results, out)
    save_figure(evaluation_figure(results), out / "evaluation")


def _cut_at_100(ax: Axes) -> None:
    """End the axis at 100 %, and write larger values at its end: a word error rate can be much larger."""
    if ax.get_xlim()[1] <= 110:
        return
    for line in ax.lines:
        for value, place in zip(*np.broadcast_arrays(line.get_xdata(), line.get_ydata()), strict=True):
            if line.get_marker() not in ("None", "|", "") and value > 100:
                text_style: dict[str, Any] = {"color": line.get_color(), "fontsize": 7, "ha": "right", "va": "center"}
                ax.annotate(f"{value:.0f} →", (0.995, place), xycoords=("axes fraction", "data"), **text_style)
    ax.set_xlim(-3, 112)
    ax.set_xticks(range(0, 101, 20))


def _described(metric: str, score: Score | None) -> str:
    if not metric.startswith("word_error_rate"):
        return metric.replace("_", " ")
    unit = "word" if score is None or "words" in score.details else "character"
    return f"{metric.replace('_', ' ').replace('word', unit)} (lower is better)"


def _scores(result: EvaluationResult, names: Sequence[str]) -> list[Score | None]:
    """The metric of this name in each task; None if a task does not have it."""
    found = result.scores()
    return [found.get(task.name, {}).get(name) for task, name in zip(result.tasks, names, strict=True)]


def _curves(scores: Sequence[Sequence[Score | None]]) -> list[list[Curve | None]]:
    return [[None if score is None else _curve(score) for score in own] for own in scores]


def _curve(score: Score) -> Curve:
    return Curve(*(np.asarray(end) for end in (score.value, score.ci_low, score.ci_high)))


def _plot(
    results: Sequence[MeasurementResult],
    titles: Sequence[str],
    curves: Sequence[Sequence[Curve | None]],
    ax: Axes,
    **style: Any,
) -> None:
    """Draw numbers with their intervals, a row for each title and a colour for each result."""
    step = _SPREAD / max(1, len(results))
    for i, curve_style in enumerate(curve_styles(results)):
        drawn = [(row, found) for row, found in enumerate(curves[i]) if found is not None]
        places = [row + (i - (len(results) - 1) / 2) * step for row, _ in drawn]
        values = [float(found.mean) for _, found in drawn]
        # Without an interval the length is NaN, and no bar is drawn. Rounding must not make it negative.
        errors = [
            [float(np.maximum(0, found.mean - found.ci_low)) for _, found in drawn],
            [float(np.maximum(0, found.ci_high - found.mean)) for _, found in drawn],
        ]
        curve_style |= {"markersize": 4, "elinewidth": 1, "capsize": 2}
        ax.errorbar(values, places, xerr=errors, linestyle="none", **curve_style | style)
    for row in range(1, len(titles)):
        ax.axhline(row - 0.5, color="0.85", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(titles)), titles, fontsize=8)
    ax.set_ylim(len(titles) - 0.5, -0.5)
