"""Options of `lsm-probe sensitivity`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions
from lsm_probe.runner.options import CONVENTIONS


def sensitivity_options(
    instructions: Annotated[
        list[str] | None,
        typer.Option(
            help="Instruction pool: a built-in name or a YAML file of the same shape. Repeat it to join several.",
            show_default=False,
        ),
    ] = None,
    sources: Annotated[
        int | None,
        typer.Option(help="Size of the pool of sources.  [default: that of the pool of instructions]", min=2),
    ] = None,
    pool: Annotated[
        Literal["tasks", "paraphrases"],
        typer.Option(
            help="Instructions of other tasks, or paraphrases of the same one (the control).",
            rich_help_panel=CONVENTIONS,
        ),
    ] = "tasks",
    per: Annotated[
        Literal["token", "response"], typer.Option(help="Unit of the sensitivity.", rich_help_panel=CONVENTIONS)
    ] = "token",
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.sensitivity`]."""
    from lsm_probe.data.pools import read_pool

    chosen = read_pool(*instructions) if instructions else None
    return CommandOptions({"instructions": chosen, "sources": sources, "pool": pool, "per": per})
