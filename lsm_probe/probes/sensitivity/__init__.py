"""Sensitivity: how much more likely the response is with its own instruction and source than with others."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS

HELP = r"""
Measure how much the response depends on instruction and speech.

D_i: by how much the response is likelier under its own instruction than under a pool of instructions of other tasks.
D_s: the same for its own source and those of other samples. Both are in nats. If D_i is near 0, the model ignores the
instruction. info-eta = D_i / (D_i + D_s). Attention is not used.

Examples:
    lsm-probe sensitivity --ckpt my-lsm --data clips.jsonl --instructions probing
    lsm-probe sensitivity --ckpt before --ckpt after --response reference \
        --out runs/compared
    lsm-probe sensitivity --ckpt my-lsm --data clips.jsonl \
        --instructions generation --pool paraphrases

Writes result.json, arrays.npz, samples.jsonl, sensitivity.png, .svg and .csv and sensitivity_tokens.csv; for several
checkpoints also comparison.json.
"""


def sensitivity_options(
    instructions: Annotated[
        list[str] | None,
        typer.Option(
            help="Instruction pool. Repeatable. [default: the samples' own]",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    sources: Annotated[
        int | None,
        typer.Option(help="Sources in the pool. [default: as many as instructions]", min=2),
    ] = None,
    pool: Annotated[
        Literal["tasks", "paraphrases"],
        typer.Option(
            help="Other instructions.",
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
