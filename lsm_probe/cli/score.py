"""`lsm-probe score`: predictions scored again, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsm_probe.cli import options as opt
from lsm_probe.errors import InputError

if TYPE_CHECKING:
    from lsm_probe.evaluation.evaluation_result import EvaluationResult


def score(
    result: Annotated[list[Path], typer.Argument(help="Folders that `lsm-probe evaluate` wrote.", metavar="RESULT...")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Task to read again, a name or YAML file. Repeatable. [default: as evaluated]", metavar="TASK"
        ),
    ] = None,
    read: opt.Read = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Score stored responses again, without a model.

    Use it after you changed the definition of a task (give its file with --task), or to compare checkpoints that were
    evaluated one by one on the same samples.

    Examples:
        lsm-probe score runs/evaluate/before runs/evaluate/after --out runs/side-by-side
        lsm-probe score runs/evaluate/my-lsm --task stricter/boolq.yaml --out runs/stricter
    """
    from lsm_probe.cli.run import run_and_show
    from lsm_probe.evaluation import EVALUATION
    from lsm_probe.evaluation.evaluation_result import EvaluationResult
    from lsm_probe.evaluation.task import read_task
    from lsm_probe.files import check_can_write
    from lsm_probe.runner.run import ToMeasure

    if out is not None:
        if any(folder.resolve().is_relative_to(out.resolve()) for folder in result):
            raise InputError(f"--out {out} is where the predictions are: choose another folder")
        check_can_write("--out", out, folder=True)
    tasks = [read_task(name) for name in task or ()]
    results = [EvaluationResult.load(folder) for folder in result]
    if len({each.name for each in results}) < len(results):
        raise InputError("two of these folders hold results of the same checkpoint: leave one out")

    def rescore(stored: EvaluationResult, samples: Sequence[Any], **_: Any) -> EvaluationResult:
        return stored.rescored(tasks, read)

    run_and_show(
        replace(EVALUATION, name="score", measure=rescore),
        [ToMeasure(str(folder), partial(results.__getitem__, i)) for i, folder in enumerate(result)],
        lambda: ([], {}),
        out,
        options={},
        as_json=json,
    )
