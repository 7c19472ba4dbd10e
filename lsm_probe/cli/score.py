"""`lsm-probe score`: predictions scored again, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Scores the predictions of earlier evaluations again, without a model: after a change of a task's definition (its file
with --task), or to set checkpoints side by side that were evaluated one by one on the same samples.

Examples:

    lsm-probe score runs/evaluate/vanilla runs/evaluate/self-powered --out runs/side-by-side

    lsm-probe score runs/evaluate/my-lsm --task stricter/boolq.yaml --out runs/stricter
"""


def score(
    result: Annotated[list[Path], typer.Argument(help="Folders that `lsm-probe evaluate` wrote.", show_default=False)],
    task: Annotated[
        list[str] | None,
        typer.Option(help="Name or YAML file of a task to read anew. Repeat it.  [default: as when evaluated]"),
    ] = None,
    read: opt.Read = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    from lsm_probe.cli.evaluation import score_and_report

    score_and_report(result, task or [], out, read=read, as_json=json)


score.__doc__ = EXAMPLES
