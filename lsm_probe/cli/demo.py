"""`lsm-probe demo`: a first answer in minutes, with the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXPLANATION = """
Runs the main job once with the embedded models (fetched on first use, 164 MB) on 25 spoken sentences.

It compares `builtin:llm`, a text LLM that reads the transcripts, with `builtin:untrained`, the same LLM behind a
Whisper encoder and an untrained connector, and adds the length-matched control. The same by hand:

    lsm-probe attention --ckpt builtin:llm --ckpt builtin:untrained --max-new-tokens 48 --out runs/demo
"""


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/demo"),
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    json: opt.Json = False,
) -> None:
    from lsm_probe.cli.attention import run

    run(
        ["builtin:llm", "builtin:untrained"],
        "builtin:probe",
        out,
        command="demo",
        loading={},
        probing={"max_new_tokens": 48},
        limit=limit,
        resume=resume,
        as_json=json,
    )


demo.__doc__ = EXPLANATION
