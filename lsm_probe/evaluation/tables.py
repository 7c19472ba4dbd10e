"""Tables of several checkpoints: `metrics.json`, `metrics.csv`, and `table.md` in the layout of the paper's tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.metrics import Score
from lsm_probe.files import replacing
from lsm_probe.runner.result import Curve, write_json

TABLES = ("metrics.json", "metrics.csv", "table.md")


def save_tables(results: Sequence[EvaluationResult], out: Path) -> None:
    """Writes `TABLES` into a folder."""
    write_json(out / "metrics.json", metrics_summary(results))
    with replacing(out / "metrics.csv") as path:
        pd.concat([result.to_frame() for result in results]).to_csv(path, index=False)
    with replacing(out / "table.md") as path:
        path.write_text(_markdown(results), encoding="utf-8")


def reference_llm(results: Sequence[EvaluationResult]) -> EvaluationResult | None:
    """The first text LLM that read the transcripts; self-powered training aims at its responses."""
    return next((result for result in results if result.checkpoint.source == "text"), None)


def agreements(results: Sequence[EvaluationResult]) -> dict[str, dict[str, Score]]:
    """Checkpoint -> task -> share of responses equal to the text LLM's; empty if there is no text LLM."""
    llm = reference_llm(results)
    if llm is None:
        return {}
    return {other.name: other.agreement(llm) for other in results if other is not llm and other.ids == llm.ids}


def cascade_of(results: Sequence[EvaluationResult]) -> EvaluationResult | None:
    """The first cascade, which is the reference for the speed of the others."""
    return next((result for result in results if result.checkpoint.cascade_of is not None), None)


def speeds(results: Sequence[EvaluationResult]) -> dict[str, Curve]:
    """Checkpoint -> its speed relative to the cascade; empty if there is no cascade."""
    cascade = cascade_of(results)
    if cascade is None:
        return {}
    return {other.name: cascade.speed_ratio(other) for other in results if other.ids == cascade.ids}


def metrics_summary(results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """The content of `metrics.json`."""
    alike, llm, speed, cascade = agreements(results), reference_llm(results), speeds(results), cascade_of(results)
    return {
        "schema": "lsm-probe/metrics/1",
        "data": results[0].data.to_dict(),
        "tasks": {task.name: task.title for task in results[0].tasks},
        "text_llm": None if llm is None else llm.name,
        "cascade": None if cascade is None else cascade.name,
        "checkpoints": {
            result.name: {
                "n_samples": len(result.samples),
                **result.summary(),
                "agreement_with_text_llm": {task: s.to_dict() for task, s in alike.get(result.name, {}).items()},
                "times_as_fast_as_cascade": speed[result.name].to_dict() if result.name in speed else None,
            }
            for result in results
        },
    }


def _markdown(results: Sequence[EvaluationResult]) -> str:
    """A row for each checkpoint, a column for each task, as Table 2 of arXiv:2410.03798 has it."""
    tasks = results[0].tasks
    conventions = [convention_of(results, task.name, task.metrics[0]) for task in tasks]
    columns = [
        f"{task.title} ({task.metrics[0]}{': ' if convention else ''}{convention})"
        for task, convention in zip(tasks, conventions, strict=True)
    ]
    head = ["checkpoint", *columns, "following_rate", "s per sample"]
    lines = [head, ["---"] * len(head)]
    for result in results:
        scores, following = result.scores(), result.following()
        values = [scores[task.name][task.metrics[0]] if task.name in scores else None for task in tasks]
        cells = ["–" if score is None else score.shown for score in (*values, following)]
        lines.append([result.name, *cells, f"{result.seconds.mean():.2f}"])
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def convention_of(results: Sequence[EvaluationResult], task: str, metric: str) -> str:
    """The counted unit, and how texts were normalised or tokenised; see [`Score`]."""
    scores = [result.scores().get(task, {}).get(metric) for result in results]
    return next((score.convention for score in scores if score is not None), "")
