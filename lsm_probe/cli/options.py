"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN, NUMBERS = "Running", "Conventions"

Ckpt = Annotated[
    list[str],
    typer.Option(
        help="Folder, hub name, `builtin:llm` (text LLM) or `builtin:untrained` (LSM). Repeat it to compare.",
        show_default=False,
    ),
]
Data = Annotated[str, typer.Option(help="JSONL manifest with `id`, `instruction` and `audio` or `text`.")]
Out = Annotated[Path | None, typer.Option(help="Output folder.  [default: runs/<command>/<checkpoint>]")]
Template = Annotated[
    str | None, typer.Option(help="Prompt template: vicuna, llama3 or chat.  [default: the checkpoint's own]")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... `auto` takes a GPU if any.", rich_help_panel=RUN)]
Dtype = Annotated[
    str,
    typer.Option(help="float32, bfloat16, float16; `auto`: float32 on CPU, else bfloat16.", rich_help_panel=RUN),
]
BatchSize = Annotated[
    str, typer.Option(help="Samples run together; halved where memory runs out.", rich_help_panel=RUN)
]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0, rich_help_panel=RUN)]
Limit = Annotated[int | None, typer.Option(help="Only the first N samples.", min=1, rich_help_panel=RUN)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from an interrupted run.", rich_help_panel=RUN)]
OnError = Annotated[
    str, typer.Option(help="At a sample that cannot be used: `fail`, or `skip` and count it.", rich_help_panel=RUN)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUN)]
MaxNewTokens = Annotated[int, typer.Option(help="Longest generated response, in tokens.", min=1)]
