"""Options of `lsm-probe knockout`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from lsm_probe.errors import InputError
from lsm_probe.runner.measurement import CommandOptions
from lsm_probe.runner.options import CONVENTIONS


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
