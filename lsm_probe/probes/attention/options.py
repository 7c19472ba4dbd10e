"""Options of `lsm-probe attention`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions
from lsm_probe.runner.options import CONVENTIONS, RUNNING


def attention_options(
    tokens: Annotated[bool, typer.Option("--tokens", help="Store the score of every prompt token too.")] = False,
    heads: Annotated[
        Literal["sum_then_norm", "mean_of_norms"],
        typer.Option(help="Norm of the sum over heads, or mean of their norms.", rich_help_panel=CONVENTIONS),
    ] = "sum_then_norm",
    segment: Annotated[
        Literal["mean", "sum"], typer.Option(help="Over the tokens of a segment.", rich_help_panel=CONVENTIONS)
    ] = "mean",
    aggregate: Annotated[
        Literal["mean_of_ratios", "ratio_of_means"],
        typer.Option(help="How eta of several samples is averaged.", rich_help_panel=CONVENTIONS),
    ] = "mean_of_ratios",
    span: Annotated[
        Literal["instruction", "instruction+template"],
        typer.Option(help="What counts as instruction.", rich_help_panel=CONVENTIONS),
    ] = "instruction",
    backend: Annotated[
        Literal["native", "transformer-lens", "nnsight"],
        typer.Option(
            help="Library whose activations are read; another than native gives a second opinion.",
            rich_help_panel=RUNNING,
        ),
    ] = "native",
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.attention`]."""
    return CommandOptions(dict(locals()))
