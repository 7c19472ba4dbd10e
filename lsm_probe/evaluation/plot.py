"""Evaluation: what responses are worth in each task, and beside it whether they have the asked-for form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.metrics import Score
from lsm_probe.evaluation.scoring import FOLLOWING
from lsm_probe.evaluation.tables import save_tables
from lsm_probe.runner.labels import plain
from lsm_probe.runner.picture_files import save_figure
from lsm_probe.runner.style import curve_looks, legend_height, with_own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPREAD = 0.6
"""Of the height of a task, the part that its checkpoints take."""


def _plot_scores(results: Sequence[EvaluationResult], ax: Axes) -> None:
    """Draw the first metric of each task, a row each, with the 95 % interval of each checkpoint."""
    names = [task.metrics[0] for task in results[0].tasks]
    scores = [_scores(result, names) for result in results]
    described = [_described(name, score) for name, score in zip(names, scores[0], strict=True)]
    titles = [f"{plain(task.title)}\n{what}" for task, what in zip(results[0].tasks, described, strict=True)]
    _plot(results, titles, scores, ax)
    ax.set(title="score", xlabel="per cent")


def _plot_following(results: Sequence[EvaluationResult], ax: Axes) -> None:
    """Draw the share of responses that have the asked-for form; tasks that ask for none are left blank."""
    titles = [plain(task.title) for task in results[0].tasks]
    _plot(results, titles, [_scores(result, [FOLLOWING] * len(titles)) for result in results], ax)
    ax.set(title="responses in the asked-for form", xlabel="per cent", xlim=(-3, 103))


@with_own_settings
def evaluation_figure(results: Sequence[EvaluationResult]) -> Figure:
    """Both pictures side by side."""
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


def _described(metric: str, score: Score | None) -> str:
    if not metric.startswith("word_error_rate"):
        return metric.replace("_", " ")
    unit = "word" if score is None or "words" in score.details else "character"
    return f"{metric.replace('_', ' ').replace('word', unit)} (less is better)"


def _scores(result: EvaluationResult, names: Sequence[str]) -> list[Score | None]:
    """Of each task the metric of this name, None where there is none."""
    found = result.scores()
    return [found.get(task.name, {}).get(name) for task, name in zip(result.tasks, names, strict=True)]


def _plot(
    results: Sequence[EvaluationResult],
    titles: Sequence[str],
    scores: Sequence[Sequence[Score | None]],
    ax: Axes,
) -> None:
    step = _SPREAD / max(1, len(results))
    for i, look in enumerate(curve_looks(results)):
        drawn = [(row, score) for row, score in enumerate(scores[i]) if score is not None]
        places = [row + (i - (len(results) - 1) / 2) * step for row, _ in drawn]
        values = [score.value for _, score in drawn]
        # Without an interval the length is NaN, and no bar is drawn. Rounding must not make it negative.
        errors = [
            [np.maximum(0, score.value - score.ci_low) for _, score in drawn],
            [np.maximum(0, score.ci_high - score.value) for _, score in drawn],
        ]
        look |= {"markersize": 4, "elinewidth": 1, "capsize": 2}
        ax.errorbar(values, places, xerr=errors, linestyle="none", **look)
    for row in range(1, len(titles)):
        ax.axhline(row - 0.5, color="0.85", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(titles)), titles, fontsize=8)
    ax.set_ylim(len(titles) - 0.5, -0.5)
