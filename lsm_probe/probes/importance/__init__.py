"""Importance: how much the loss of the responses depends on each weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lsm_probe.runner.measurement import CommandOptions, Measurement
from lsm_probe.runner.options import CONVENTIONS

HELP = r"""
Measure which weights matter most for the responses.

For each weight: by how much the loss of the responses would change, to first order, if it were 0 (|weight x gradient|);
summed by layer, module and matrix. Of several checkpoints, the first should be the text LLM from which the others were
fine-tuned.

Examples:
    lsm-probe importance --ckpt builtin:llm --data answers.jsonl --ablate 0.03
    lsm-probe importance --ckpt my-llm --data answers.jsonl --write-lr-schedule r.yaml
    lsm-probe importance --ckpt my-llm --ckpt my-lsm --modality text --masks 0.05

Writes result.json, arrays.npz, samples.jsonl, importance.png, .svg and .csv, with --masks also masks.npz.
"""


def importance_options(
    masks: Annotated[float | None, typer.Option(help="Store which share X of each matrix scores highest.")] = None,
    ablate: Annotated[
        float | None,
        typer.Option(help="Test the scores: perplexity with top X set to 0."),
    ] = None,
    write_lr_schedule: Annotated[
        Path | None,
        typer.Option(help="Write rates for `train strategy=layerwise_lr`.", metavar="FILE"),
    ] = None,
    strength: Annotated[float, typer.Option(help="How far those rates fall.")] = 0.4,
    scratch: Annotated[
        Path | None, typer.Option(help="Keep sums in files here, not in memory.", metavar="FOLDER")
    ] = None,
    mode: Annotated[
        Literal["abs", "signed"],
        typer.Option(help="Mean absolute value, or absolute value of the mean.", rich_help_panel=CONVENTIONS),
    ] = "abs",
    modality: Annotated[
        Literal["own", "text"],
        typer.Option(help="What an LSM gets: speech or text.", rich_help_panel=CONVENTIONS),
    ] = "own",
) -> CommandOptions:
    """The keyword arguments of [`lsm_probe.importance`]; learning rates are written after the results are stored."""
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
