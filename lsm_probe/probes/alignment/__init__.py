"""Alignment: how similar an LSM's states are for speech and for its transcript."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS

HELP = r"""
Measure how similar an LSM's states are for speech and text.

Runs each sample twice with the same instruction: with its speech, and with its transcript in the place of the speech.
Compares the hidden states by layer: cosine, CKA, retrieval, distance of the centroids, MMD with a permutation test.
Samples need `audio` and `text`. `builtin:untrained` is a baseline without alignment.

Examples:
    lsm-probe alignment --ckpt my-lsm --data clips.jsonl --instruction "Listen."
    lsm-probe alignment --ckpt before --ckpt after --data clips.jsonl --out runs/both
    lsm-probe alignment --ckpt my-lsm --segment response --response reference --layer 16

Writes result.json, arrays.npz, samples.jsonl, alignment.png, .svg and .csv and alignment_points.csv (t-SNE); for
several checkpoints also comparison.json.
"""


def alignment_options(
    instruction: Annotated[
        str | None,
        typer.Option(help="One instruction for all samples.", show_default=False),
    ] = None,
    layer: Annotated[int, typer.Option(help="Layer of the t-SNE figure: 0 the embeddings, -1 the last.")] = -1,
    perplexity: Annotated[float, typer.Option(help="Perplexity of the t-SNE figure.")] = 30.0,
    segment: Annotated[
        Literal["source", "prompt", "response"],
        typer.Option(help="Averaged positions.", rich_help_panel=CONVENTIONS),
    ] = "source",
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.alignment`]."""
    return CommandOptions(
        {"instruction": instruction, "plot_layer": layer, "perplexity": perplexity, "segment": segment}
    )


PROBE = Measurement.in_package(
    __name__,
    help=HELP,
    options=alignment_options,
    pictures=("alignment.png", "alignment.svg", "alignment.csv", "alignment_points.csv"),
)
