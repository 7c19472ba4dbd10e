"""Sensitivity: how much likelier the response is under its own instruction and source than under others."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS

HELP = """
How much the response depends on the instruction and on the speech.

Measures, without looking at attention, how much the response depends on the instruction and on the source: how much
likelier it is under its own instruction than under a pool of instructions of other tasks (D_i), and under its own
source than under other samples' (D_s). D_i near 0: the instruction is ignored. info-eta = D_i / (D_i + D_s).

Examples:

    lsm-probe sensitivity --ckpt my-lsm --data clips.jsonl --instructions probing

    lsm-probe sensitivity --ckpt vanilla --ckpt self-powered --response reference --out runs/compared

    lsm-probe sensitivity --ckpt my-lsm --data clips.jsonl --instructions generation --pool paraphrases

Writes result.json, arrays.npz, samples.jsonl, sensitivity.png, .svg and .csv and sensitivity_tokens.csv; with several
checkpoints comparison.json too.
"""


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


PROBE = Measurement.in_package(
    __name__,
    help=HELP,
    options=sensitivity_options,
    pictures=("sensitivity.png", "sensitivity.svg", "sensitivity.csv", "sensitivity_tokens.csv"),
)
