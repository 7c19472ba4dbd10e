"""Knockout: what the response loses when the instruction or the source is masked in some layers."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from lsm_probe.errors import InputError
from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS

HELP = """
What the response loses when instruction or speech is masked in some layers.

Masks the instruction, and then the source, from the response in windows of layers, and measures by how much the
log-probability of the response falls. Causal eta = fall_i / (fall_i + fall_s), by layer. Tokens that have read a
segment before still pass it on: the instruction reaches the response through the speech tokens, for example. The masked
model is out of distribution, so the falls are not bounds.

Examples:

    lsm-probe knockout --ckpt my-lsm --data clips.jsonl

    lsm-probe knockout --ckpt vanilla --ckpt self-powered --response reference --window 9 --out runs/compared

    lsm-probe knockout --ckpt my-lsm --data clips.jsonl --single-heads --layers 12-23 --max-new-tokens 16

With --single-heads each head is masked alone too. This adds 2 x layers x heads masked passes for each sample, which
takes as many times as long as the windows as a layer has heads. A *speech-anchor head* is a head whose masking of the
speech lowers the log-probability of the response (p < 0.05, corrected for the number of heads) by more than its masking
of the instruction does, which alone shows no effect; an *instruction head* is the reverse. The effect of a single head
is small, and with four utterances or fewer no head can be found.

Writes result.json, arrays.npz, samples.jsonl, knockout.png, .svg and .csv, with --single-heads knockout_heads.png, .svg
and .csv; with several checkpoints comparison.json too.
"""


def knockout_options(
    window: Annotated[
        int, typer.Option(help="Layers masked together, around each layer in turn.", rich_help_panel=CONVENTIONS)
    ] = 5,
    single_heads: Annotated[
        bool, typer.Option("--single-heads", help="Mask single heads too.", rich_help_panel=CONVENTIONS)
    ] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Only heads of this layer, or of a range such as 12-23.", rich_help_panel=CONVENTIONS),
    ] = None,
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.knockout`]."""
    chosen = None if layers is None else [layer for part in layers for layer in _parse_layers(part)]
    return CommandOptions({"window": window, "single_heads": single_heads, "layers": chosen})


def _parse_layers(part: str) -> range:
    """`12`, or `12-23` with both ends."""
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)  # four digits: a range is made before the model is known
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
