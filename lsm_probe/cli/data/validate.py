"""`lsm-probe data validate`: every bad line of a manifest, and every bad clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def validate(
    manifest: Annotated[Path, typer.Argument(help="JSONL manifest.")],
    headers: Annotated[
        bool, typer.Option("--headers", help="Look at the header of each clip only; much faster, finds less.")
    ] = False,
    ckpt: Annotated[
        str | None,
        typer.Option(
            help="Also check the texts for control tokens of this checkpoint's tokenizer (weights are not loaded)."
        ),
    ] = None,
    template: opt.Template = None,
    json: opt.Json = False,
) -> None:
    """Reads a manifest and decodes every clip it names. Reports each bad line by number and cause, and counts.

    Exit codes: 0 all is well, 2 something is not.

    Examples:

        lsm-probe data validate clips.jsonl

        lsm-probe data validate clips.jsonl --ckpt my-lsm
    """
    from lsm_probe.cli.data.check import validate_and_report

    validate_and_report(manifest, headers=headers, as_json=json, ckpt=ckpt, template=template)
