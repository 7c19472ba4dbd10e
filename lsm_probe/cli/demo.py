"""`lsm-probe demo`: shows speech anchor bias and its repair on a laptop."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Output folder.", metavar="FOLDER")] = Path("runs/demo"),
    full: Annotated[bool, typer.Option("--full", help="Train longer.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Training steps. [default: as many as fit into about 6 minutes, at least 24; 40 with --full]",
            min=1,
            show_default=False,
        ),
    ] = None,
    utterances: Annotated[int, typer.Option(help="Utterances to measure.", min=2)] = 24,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted demo with the same training size."),
    ] = False,
) -> None:
    """Show speech anchor bias and its repair with the built-in models.

    First the demo diagnoses two small speech LLMs. `builtin:vanilla_asr` was trained on transcription alone, and
    answers every instruction with the transcript; `builtin:self_powered` follows instructions. Then the demo trains
    `builtin:vanilla_asr` on answers of the text LLM inside both (SmolLM2), and diagnoses the result. Each step prints
    its purpose and its command. The result is diagnosis/report.html.

    The training takes as many steps as let the demo end after about 6 minutes on this machine, but at least 24.
    --full trains for 40 steps of 8 samples. The first run downloads 164 MB of models.

    Examples:
        lsm-probe demo
        lsm-probe demo --full --out runs/full-demo
    """
    from lsm_probe.reports.demo import FULL, TrainingSize, run_demo

    size = FULL if full else None
    if steps is not None:
        size = TrainingSize(steps, FULL.batch if full else 4)
    run_demo(partial(_run_command, context), out, size=size, utterances=utterances, resume=resume)


def _run_command(context: typer.Context, arguments: list[str]) -> None:
    """Runs a command of this package in this process."""
    context.find_root().command.main(arguments, prog_name="lsm-probe", standalone_mode=False)
