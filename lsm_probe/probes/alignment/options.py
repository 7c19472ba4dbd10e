"""Options of `lsm-probe alignment`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions
from lsm_probe.runner.options import CONVENTIONS


def alignment_options(
    instruction: Annotated[
        str | None,
        typer.Option(help="One instruction for all samples.  [default: each sample's own]", show_default=False),
    ] = None,
    layer: Annotated[
        int, typer.Option(help="State of the t-SNE figure: 0 is the embeddings, -1 what comes after all layers.")
    ] = -1,
    perplexity: Annotated[float, typer.Option(help="Of the t-SNE: about how many neighbours place a point.")] = 30.0,
    segment: Annotated[
        Literal["source", "prompt", "response"],
        typer.Option(help="Positions that are averaged.", rich_help_panel=CONVENTIONS),
    ] = "source",
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.alignment`]."""
    return CommandOptions(
        {"instruction": instruction, "plot_layer": layer, "perplexity": perplexity, "segment": segment}
    )
