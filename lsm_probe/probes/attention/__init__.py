"""Attention: how much of what each layer reads for the response comes from the instruction and from the speech."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS, RUNNING

HELP = r"""
Measure the share of attention that the instruction gets (eta).

For each layer: eta = S_instruction / (S_instruction + S_source), where S is the norm-based attention of the response to
a segment of the prompt, and the source is the speech. 0.5 is balanced; a low eta can mean speech anchor bias.

Examples:
    lsm-probe attention --ckpt my-lsm --data clips.jsonl
    lsm-probe attention --ckpt builtin:llm --ckpt builtin:untrained --out runs/first
    lsm-probe attention --ckpt my-lsm --heads mean_of_norms --response reference

Writes result.json, arrays.npz, samples.jsonl, and eta and eta_heads (single heads) as .png, .svg and .csv; for several
checkpoints also comparison.json.
"""


def attention_options(
    tokens: Annotated[bool, typer.Option("--tokens", help="Also store the score of every prompt token.")] = False,
    heads: Annotated[
        Literal["sum_then_norm", "mean_of_norms"],
        typer.Option(help="How heads are combined.", rich_help_panel=CONVENTIONS),
    ] = "sum_then_norm",
    segment: Annotated[
        Literal["mean", "sum"],
        typer.Option(help="How tokens are combined.", rich_help_panel=CONVENTIONS),
    ] = "mean",
    aggregate: Annotated[
        Literal["mean_of_ratios", "ratio_of_means"],
        typer.Option(help="How samples are combined.", rich_help_panel=CONVENTIONS),
    ] = "mean_of_ratios",
    span: Annotated[
        Literal["instruction", "instruction+template"],
        typer.Option(help="What counts as instruction.", rich_help_panel=CONVENTIONS),
    ] = "instruction",
    backend: Annotated[
        Literal["native", "transformer-lens", "nnsight"],
        typer.Option(
            help="Reads the activations.",
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
