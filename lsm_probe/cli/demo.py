"""`lsm-probe demo`: the whole story on a laptop, told by the commands that anyone can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXPLANATION = """
Tells the whole story with the embedded models (fetched on first use, 164 MB). It begins with builtin:vanilla_asr, a
small speech LLM that was trained on transcription alone and answers every instruction with what was said. It speaks
commands, lets SmolLM2 answer instructions about their transcripts, trains the model on those answers, and probes it
before and after, beside SmolLM2 itself and beside builtin:self_powered, whose repair took longer. It ends with
report.html.

Each step prints what it is for and the command that does it, to be run by oneself. The whole training, from the parts
on, is in `analyses/speech_anchor_bias`.
"""


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps of the repair.", min=1)] = 40,
    limit: Annotated[int, typer.Option(help="Samples that are probed.", min=2)] = 24,
    resume: Annotated[bool, typer.Option("--resume", help="Skip the steps that are done.")] = False,
) -> None:
    from lsm_probe.cli.story import tell

    tell(out, steps=steps, limit=limit, resume=resume)


demo.__doc__ = EXPLANATION
