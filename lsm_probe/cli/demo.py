"""`lsm-probe demo`: the whole story on a laptop, told by the commands that anyone can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXPLANATION = """
Tells the whole story with the embedded models (fetched on first use, 164 MB): speaks commands, lets SmolLM2 answer
their transcripts, trains two small speech LLMs (one on transcription alone, one on SmolLM2's own answers), probes
both beside SmolLM2 itself, and ends with report.html.

Each step prints what it is for and the command that does it, to be run by oneself. The training is far shorter than
what `analyses/miniature_training` reports: it shows the way, not the effect in full.
"""


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps of each model.", min=1)] = 40,
    limit: Annotated[int, typer.Option(help="Samples that are probed.", min=2)] = 24,
    resume: Annotated[bool, typer.Option("--resume", help="Skip the steps that are done.")] = False,
) -> None:
    from lsm_probe.cli.story import tell

    tell(out, steps=steps, limit=limit, resume=resume)


demo.__doc__ = EXPLANATION
