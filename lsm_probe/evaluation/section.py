"""Evaluation in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.plot import evaluation_figure
from lsm_probe.evaluation.result_table import evaluation_table
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture


def evaluation_section(measurement: Measurement, results: Sequence[EvaluationResult], everything: Any) -> Section:
    """Scores by task, and the share of responses in the requested format."""
    figure = evaluation_figure(results)
    return Section(
        "evaluation",
        measurement.title,
        "Scores of greedy responses to each task. Correctness and the asked-for form are scored separately, because a "
        "model with speech anchor bias misses the form. For word error rates, lower is better.",
        [picture(figure, "evaluation", "Scores by task and the share of responses in the asked-for form")],
        [evaluation_table(results)],
    )
