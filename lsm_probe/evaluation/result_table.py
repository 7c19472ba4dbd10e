"""The table of an evaluation, in the terminal and in a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.metrics import Score
from lsm_probe.evaluation.tables import agreements, convention_of, reference_llm, speeds
from lsm_probe.runner.tables import NONE, UNKNOWN, Table

_BESIDE = 3
"""Maximum number of checkpoints with intervals beside the values instead of below."""


def evaluation_table(results: Sequence[EvaluationResult]) -> Table:
    """A row for each task and metric, a column for each checkpoint."""
    llm, alike = reference_llm(results), agreements(results)
    between = " " if len(results) <= _BESIDE else "\n"
    rows: list[list[str]] = []
    lines = []
    for task in results[0].tasks:
        found = [result.scores().get(task.name, {}) for result in results]
        names = list(dict.fromkeys(name for scores in found for name in scores))
        for i, name in enumerate(names):
            strict = "*" if task.has_form and name in ("accuracy", "f1_micro", "f1_macro") else ""
            convention = convention_of(results, task.name, name)
            metric = f"{name}{strict}" + (f"\n  {convention}" if convention else "")
            cells = [_cell(scores.get(name), between) for scores in found]
            rows.append([task.title if i == 0 else "", metric, *cells])
        if alike and llm is not None:
            cells = [_cell(alike.get(result.name, {}).get(task.name), between) for result in results]
            rows.append(["", "agreement", *cells])
        lines.append(len(rows) - 1)
    following = [result.following() for result in results]
    if any(following):
        rows.append(["mean of tasks", "following_rate", *(_cell(score, between) for score in following)])
    rows.append(["", "seconds per sample", *(f"{result.seconds.mean():.2f}" for result in results)])
    if speed := speeds(results):
        cells = [f"{speed[result.name].mean:.2f}" if result.name in speed else NONE for result in results]
        rows.append(["", "speed relative to cascade", *cells])
    return Table(
        "scores of the responses, in per cent",
        ["task", "metric", *(result.name for result in results)],
        rows,
        "95 % interval over utterances; *: only responses in the asked-for form count"
        + (f"; agreement: with the responses of {llm.name}" if alike and llm is not None else ""),
        text_columns=2,
        lines=lines,
    )


def _cell(score: Score | None, between: str) -> str:
    if score is None:
        return NONE
    if math.isnan(score.value):
        return score.shown
    ends = UNKNOWN if math.isnan(score.ci_low) else f"{score.ci_low:.1f}, {score.ci_high:.1f}"
    return f"{score.shown}{between}[{ends}]"


def evaluation_note(result: EvaluationResult) -> str:
    summary = result.summary()["tasks"].values()
    empty = sum(task["empty_responses"] for task in summary)
    cut = sum(task["cut_responses"] for task in summary)
    details = [task["transcripts"]["details"] for task in summary if "transcripts" in task]
    units = sum(found.get(unit, 0) for found in details for unit in ("words", "characters"))
    wrong = sum(found[edit] for found in details for edit in ("substitutions", "deletions", "insertions"))
    unit = "/".join(unit for unit in ("word", "character") if any(f"{unit}s" in found for found in details))
    transcripts = f"; transcripts: {100 * wrong / units:.1f} % {unit} errors" if units else ""
    most = result.conventions.max_new_tokens
    note = f"{empty} responses empty, {cut} cut at the limit of {most} tokens{transcripts}"
    return "; ".join([note, *result.influence_notes()])
