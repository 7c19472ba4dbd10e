"""Attention: how much of what each layer reads for the response comes from instruction and speech."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS, RUNNING

HELP = """
Eta by layer: the share of the response's attention that the instruction gets.

Measures, layer by layer, how much of the norm-based attention of the response goes to the instruction and how much
to the speech: eta = S_instruction / (S_instruction + S_source). 0.5 is balanced, low is speech anchor bias.

Examples:

    lsm-probe attention --ckpt my-lsm --data clips.jsonl

    lsm-probe attention --ckpt builtin:llm --ckpt builtin:untrained --out runs/first

    lsm-probe attention --ckpt my-lsm --heads mean_of_norms --response reference --json

    lsm-probe attention --ckpt my-lsm --backend nnsight --responses runs/attention/my-lsm --out runs/second-opinion

Writes result.json, arrays.npz, samples.jsonl, and eta and eta_heads (single heads) as .png, .svg and .csv; with
several checkpoints comparison.json too.
"""


def attention_options(
    tokens: Annotated[bool, typer.Option("--tokens", help="Store the score of every prompt token too.")] = False,
    heads: Annotated[
        Literal["sum_then_norm", "mean_of_norms"],
        typer.Option(help="Norm of the sum over heads, or mean of their norms.", rich_help_panel=CONVENTIONS),
    ] = "sum_then_norm",
    segment: Annotated[
        Literal["mean", "sum"],
        typer.Option(help="Mean or sum over the tokens of a segment.", rich_help_panel=CONVENTIONS),
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
            help="Library whose activations are read; the others cross-check native.",
            rich_help_panel=RUNNING,
        ),
    ] = "native",
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.attention`]."""
    return CommandOptions(dict(locals()))


PROBE = Measurement.in_package(
    __name__,
    help=HELP,
    options=attention_options,
    figures=f"{__name__}.plot:attention_figures",
    pictures=tuple(f"{name}.{kind}" for name in ("eta", "eta_heads") for kind in ("png", "svg", "csv")),
    controls=f"{__name__}.reference:length_controls",
)
