"""Alignment: how similar an LSM's states are for speech and for its transcript."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS

HELP = """
How similar an LSM's states are for speech and for its transcript.

Runs each sample twice under the same instruction, with its speech and with its transcript in the source slot, and
compares the states of both at every layer: cosine with the own and with other transcripts, CKA, retrieval (also
standardised, without the offset between the two sets), distance of the centroids, MMD with a permutation test. It plots
both sets with t-SNE. Samples need `audio` and `text`. `builtin:untrained` is the baseline without alignment.

Examples:

    lsm-probe alignment --ckpt my-lsm --data clips.jsonl --instruction "Repeat what the speech says."

    lsm-probe alignment --ckpt vanilla --ckpt self-powered --data clips.jsonl --out runs/compared

    lsm-probe alignment --ckpt my-lsm --data clips.jsonl --segment response --response reference --layer 16

Writes result.json, arrays.npz, samples.jsonl, alignment.png, .svg and .csv and alignment_points.csv; with several
checkpoints comparison.json too.
"""


def alignment_options(
    instruction: Annotated[
        str | None,
        typer.Option(help="One instruction for all samples.  [default: each sample's own]", show_default=False),
    ] = None,
    layer: Annotated[
        int, typer.Option(help="State of the t-SNE figure: 0 is the embeddings, -1 what comes after all layers.")
    ] = -1,
    perplexity: Annotated[
        float, typer.Option(help="t-SNE perplexity: about how many neighbours each point has.")
    ] = 30.0,
    segment: Annotated[
        Literal["source", "prompt", "response"],
        typer.Option(help="Positions that are averaged.", rich_help_panel=CONVENTIONS),
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
