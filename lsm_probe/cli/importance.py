"""`lsm-probe importance`: which weights the responses hang on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsm_probe.cli import options as opt

if TYPE_CHECKING:
    from lsm_probe.probes.importance.result import ImportanceResult

EXAMPLES = """
Measures for each weight how much the loss of the responses would change, to first order, if it were 0:
|weight x gradient|, by layer, module and matrix. Of several checkpoints it says how the distribution over layers has
shifted: the first might be the text LLM, the others its speech-tuned children (--modality text gives all of them the
transcript).

Examples:

    lsm-probe importance --ckpt builtin:llm --data answers.jsonl --ablate 0.03

    lsm-probe importance --ckpt base-llm --ckpt my-lsm --modality text --data answers.jsonl --masks 0.05

    lsm-probe importance --ckpt base-llm --data answers.jsonl --write-lr-schedule rates.yaml

Writes result.json, arrays.npz, samples.jsonl, importance.png, .svg and .csv, with --masks masks.npz; with several
checkpoints comparison.json too.
"""


def importance(
    ckpt: opt.Ckpt,
    data: opt.Data = "builtin:probe",
    out: opt.Out = None,
    template: opt.Template = None,
    date: opt.Date = None,
    max_new_tokens: opt.MaxNewTokens = 128,
    response_part: opt.ResponsePart = "all",
    responses: opt.Responses = None,
    masks: Annotated[
        float | None, typer.Option(help="Mark this share of the weights of each matrix, for example 0.05.")
    ] = None,
    ablate: Annotated[
        float | None,
        typer.Option(help="Check the scores: perplexity with this share of each matrix set to 0, for example 0.03."),
    ] = None,
    write_lr_schedule: Annotated[
        Path | None, typer.Option(help="Write learning rates by layer for `lsm-probe train strategy=layerwise_lr`.")
    ] = None,
    strength: Annotated[float, typer.Option(help="How far those rates go down: 0.4 is to 0.6 of the base rate.")] = 0.4,
    scratch: Annotated[
        Path | None, typer.Option(help="Keep what is added up by single weights in files here, not in memory.")
    ] = None,
    mode: Annotated[str, typer.Option(help="abs or signed.", rich_help_panel=opt.NUMBERS)] = "abs",
    modality: Annotated[
        str, typer.Option(help="own (speech for an LSM), or text: the transcript.", rich_help_panel=opt.NUMBERS)
    ] = "own",
    response: Annotated[str, typer.Option(help="reference or generated.", rich_help_panel=opt.NUMBERS)] = "reference",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    from lsm_probe.cli.run import View, probe_and_report
    from lsm_probe.files import check_can_write
    from lsm_probe.models.loading import look_up, look_up_text
    from lsm_probe.probes.importance.learning_rates import check_strength, write_rates
    from lsm_probe.probes.importance.measure import importance as probe
    from lsm_probe.probes.importance.plot import PICTURES, save_importance
    from lsm_probe.probes.importance.table import importance_note, importance_table

    check_strength(strength)
    if write_lr_schedule is not None:
        check_can_write("--write-lr-schedule", write_lr_schedule)
    if scratch is not None:
        check_can_write("--scratch", scratch, folder=True)

    def write(results: Sequence[ImportanceResult], folder: Path) -> None:
        if write_lr_schedule is not None:
            write_rates(results[0], strength, write_lr_schedule)
        save_importance(results, folder)

    probe_and_report(
        probe,
        View(importance_table, importance_note, write, PICTURES),
        ckpt,
        data,
        out,
        command="importance",
        loading=opt.loading(device, dtype, template, date),
        probing={
            "mode": mode,
            "modality": modality,
            "masks": masks,
            "ablate": ablate,
            "scratch": scratch,
            "response": response,
            "max_new_tokens": max_new_tokens,
            "response_part": response_part,
            **opt.probing(seed, on_error, batch_size),
        },
        source_of=look_up_text if modality == "text" else look_up,
        responses=responses,
        limit=limit,
        resume=resume,
        as_json=json,
    )


importance.__doc__ = EXAMPLES
