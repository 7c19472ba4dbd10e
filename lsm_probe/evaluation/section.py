"""Evaluation in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.metrics import Score
from lsm_probe.evaluation.plot import evaluation_figure
from lsm_probe.evaluation.tables import agreements, reference_llm, speeds
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section
from lsm_probe.runner.page_pictures import picture
from lsm_probe.runner.tables import NONE, Table


def evaluation_section(measurement: Measurement, results: Sequence[EvaluationResult], everything: Any) -> Section:
    """Scores by task, and the share of responses in the asked-for form."""
    figure = evaluation_figure(results)
    return Section(
        "evaluation",
        "Evaluation",
        "Greedy responses to tasks. Apart from whether they are right, it is counted whether they have the asked-for "
        "form, which is what speech anchor bias destroys.",
        [picture(figure, "evaluation", "Scores by task and the share of responses in the asked-for form")],
        [_table(results)],
    )


def _table(results: Sequence[EvaluationResult]) -> Table:
    """A row for each task and metric."""
    llm, alike = reference_llm(results), agreements(results)
    rows: list[list[str]] = []
    for task in results[0].tasks:
        found = [result.scores().get(task.name, {}) for result in results]
        names = list(dict.fromkeys(name for scores in found for name in scores))
        first = len(rows)
        rows += [["", name.replace("_", " "), *(_score(scores.get(name)) for scores in found)] for name in names]
        if alike and llm is not None:
            cells = [_score(alike.get(result.name, {}).get(task.name)) for result in results]
            rows.append(["", f"same answer as {llm.name}", *cells])
        rows[first][0] = task.title
    if any(following := [result.following() for result in results]):
        rows.append(["mean of tasks", "asked-for form", *map(_score, following)])
    rows.append(["", "seconds per sample", *(f"{result.seconds.mean():.2f}" for result in results)])
    if speed := speeds(results):
        cells = [f"{speed[r.name].mean:.2f}" if r.name in speed else NONE for r in results]
        rows.append(["", "times as fast as the cascade", *cells])
    note = "Per cent, 95 % intervals over utterances. Word error rates: less is better."
    return Table("What the responses are worth", ["", "", *(r.name for r in results)], rows, note)


def _score(score: Score | None) -> str:
    return NONE if score is None else f"{score.value:.1f} [{score.ci_low:.1f}, {score.ci_high:.1f}]"
