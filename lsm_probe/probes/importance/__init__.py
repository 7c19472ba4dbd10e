"""Importance: how much the loss of the responses depends on each weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS

HELP = """
Which weights matter most for the responses.

Measures for each weight how much the loss of the responses would change, to first order, if it were 0:
|weight x gradient|, by layer, module and matrix. For several checkpoints it measures how the distribution over layers
shifts: give, for example, the text LLM first, then checkpoints fine-tuned from it (--modality text gives all of them
the transcript).

Examples:

    lsm-probe importance --ckpt builtin:llm --data answers.jsonl --ablate 0.03

    lsm-probe importance --ckpt base-llm --ckpt my-lsm --modality text --data answers.jsonl --masks 0.05

    lsm-probe importance --ckpt base-llm --data answers.jsonl --write-lr-schedule rates.yaml

Writes result.json, arrays.npz, samples.jsonl, importance.png, .svg and .csv, with --masks masks.npz; with several
checkpoints comparison.json too.
"""


def importance_options(
    masks: Annotated[
        float | None, typer.Option(help="Mark this share of the weights of each matrix, for example 0.05.")
    ] = None,
    ablate: Annotated[
        float | None,
        typer.Option(help="Validate the scores: perplexity with this share of each matrix set to 0, for example 0.03."),
    ] = None,
    write_lr_schedule: Annotated[
        Path | None, typer.Option(help="Write learning rates by layer for `lsm-probe train strategy=layerwise_lr`.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="How far those rates fall: with 0.4 the lowest is 0.6 of the base rate.")
    ] = 0.4,
    scratch: Annotated[
        Path | None, typer.Option(help="Keep the sums of single weights in files here, not in memory.")
    ] = None,
    mode: Annotated[
        Literal["abs", "signed"],
        typer.Option(help="Mean of absolute values, or absolute value of the mean.", rich_help_panel=CONVENTIONS),
    ] = "abs",
    modality: Annotated[
        Literal["own", "text"],
        typer.Option(
            help="What an LSM is given: its own modality, speech, or the transcript.", rich_help_panel=CONVENTIONS
        ),
    ] = "own",
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.importance`]; learning rates are written when the results are stored."""
    from lsm_probe.files import check_can_write
    from lsm_probe.probes.importance.learning_rates import check_strength, write_rates

    check_strength(strength)
    if write_lr_schedule is not None:
        check_can_write("--write-lr-schedule", write_lr_schedule)
    if scratch is not None:
        check_can_write("--scratch", scratch, folder=True)

    def finish(results: Sequence[Any]) -> None:
        if write_lr_schedule is not None:
            write_rates(results[0], strength, write_lr_schedule)

    measure = {"masks": masks, "ablate": ablate, "scratch": scratch, "mode": mode, "modality": modality}
    return CommandOptions(measure, source="text" if modality == "text" else None, finish=finish)


PROBE = Measurement.in_package(
    __name__,
    help=HELP,
    options=importance_options,
    response="reference",
)
