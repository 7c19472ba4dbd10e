"""Knockout: the loss in log-probability when some layers cannot attend to the instruction or the source."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from lsm_probe.errors import InputError
from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS

HELP = r"""
Measure what the response loses when a segment is masked.

In windows of layers, the instruction and then the speech is masked from the response. fall_i and fall_s are the falls
of its log-probability; causal eta = fall_i / (fall_i + fall_s). Tokens that read a segment in earlier layers still pass
it on, and the masked model is out of distribution, so the falls are not bounds.

--single-heads also masks each head alone: 2 x layers x heads more passes for each sample. docs/probes/knockout.md says
when a head counts as a speech-anchor head or an instruction head.

Examples:
    lsm-probe knockout --ckpt my-lsm --data clips.jsonl
    lsm-probe knockout --ckpt before --ckpt after --window 9 --out runs/compared
    lsm-probe knockout --ckpt my-lsm --data clips.jsonl --single-heads --layers 12-23

Writes result.json, arrays.npz, samples.jsonl, knockout.png, .svg and .csv, with --single-heads also knockout_heads.*.
"""


def knockout_options(
    window: Annotated[
        int, typer.Option(help="Layers masked together, around each layer.", rich_help_panel=CONVENTIONS)
    ] = 5,
    single_heads: Annotated[
        bool, typer.Option("--single-heads", help="Also mask single heads.", rich_help_panel=CONVENTIONS)
    ] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Only heads of this layer, or of a range such as 12-23. Repeatable.",
            metavar="LAYERS",
            rich_help_panel=CONVENTIONS,
        ),
    ] = None,
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.knockout`]."""
    chosen = None if layers is None else [layer for part in layers for layer in _parse_layers(part)]
    return CommandOptions({"window": window, "single_heads": single_heads, "layers": chosen})


def _parse_layers(part: str) -> range:
    """`12`, or `12-23` with both ends."""
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)  # four digits: the range is built before the model is known
    layers = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not layers:
        raise InputError(f"--layers {part[:40]!r} is neither a layer nor a range of layers such as 12-23")
    return layers


PROBE = Measurement.in_package(
    __name__,
    help=HELP,
    options=knockout_options,
    figures=f"{__name__}.plot:knockout_figures",
    pictures=tuple(f"{name}.{kind}" for name in ("knockout", "knockout_heads") for kind in ("png", "svg", "csv")),
)
