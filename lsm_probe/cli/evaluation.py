"""What `lsm-probe evaluate` and `lsm-probe score` show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsm_probe.cli.run import View, measure_and_report
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.evaluation.cascade import cascade_name, load_any, look_up_any
from lsm_probe.evaluation.evaluate import evaluate
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.plot import PICTURES, save_evaluation
from lsm_probe.evaluation.result_table import evaluation_note, evaluation_table
from lsm_probe.evaluation.task import Task, builtin_tasks, read_task, read_tasks, with_read
from lsm_probe.files import check_can_write
from lsm_probe.runner.prepared_samples import describe_data

VIEW: View[EvaluationResult] = View(evaluation_table, evaluation_note, save_evaluation, PICTURES)


def evaluate_and_report(
    task: Sequence[str],
    ckpt: Sequence[str],
    data: Path | None,
    out: Path | None,
    *,
    cascades: Sequence[str],
    whisper: str,
    read: str | None,
    evaluating: dict[str, Any],
    limit: int | None,
    **options: Any,
) -> None:
    """Evaluates checkpoints, then cascades, on the same samples."""
    if not ckpt and not cascades:
        raise InputError("there is nothing to evaluate: give --ckpt or --cascade")

    def read_samples() -> tuple[list[Sample], dict[str, Any]]:
        tasks, samples = read_tasks(task, data=data, limit=limit, on_error=evaluating.get("on_error", "fail"))
        names = "+".join(task.name for task in tasks)
        return samples, {"tasks": with_read(tasks, read), "data": describe_data(samples, names)}

    measure_and_report(
        evaluate,
        VIEW,
        [*ckpt, *(cascade_name(whisper, llm) for llm in cascades)],
        read_samples,
        out,
        command="evaluate",
        probing=evaluating,
        loader=load_any,
        source_of=look_up_any,
        **options,
    )


def score_and_report(
    folders: Sequence[Path], task: Sequence[str], out: Path | None, *, read: str | None, as_json: bool
) -> None:
    """Scores the predictions in these folders again.

    Raises:
        InputError: a folder holds no predictions, two are of one checkpoint, a task is not among them, or `out` is
            where predictions are.
    """
    if out is not None and any(folder.resolve().is_relative_to(out.resolve()) for folder in folders):
        raise InputError(f"--out {out} is where the predictions are: choose another folder")
    if out is not None:
        check_can_write("--out", out, folder=True)
    tasks = [read_task(name) for name in task]
    results = {str(folder): EvaluationResult.load(folder) for folder in folders}
    if len({result.name for result in results.values()}) < len(results):
        raise InputError("two of these folders are of one checkpoint, which no table could tell apart: leave one out")
    measure_and_report(
        _rescore,
        VIEW,
        [str(folder) for folder in folders],
        lambda: ([], {"tasks": tasks, "read": read}),
        out,
        command="score",
        loading={},
        probing={},
        loader=results.__getitem__,
        source_of=lambda name: None,
        as_json=as_json,
    )


def _rescore(
    result: EvaluationResult, samples: Sequence[Sample], *, tasks: Sequence[Task], read: str | None, **_: Any
) -> EvaluationResult:
    return result.rescored(tasks, read)


def list_tasks() -> None:
    """Prints the package's tasks."""
    for name in builtin_tasks():
        task = read_task(name)
        print(f"{name}: {task.title}; {', '.join(task.metrics)}; {task.manifest}")
