"""`lsm-probe text-ability`: what speech training cost the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsm_probe.cli import options as opt
from lsm_probe.errors import InputError

if TYPE_CHECKING:
    from lsm_probe.evaluation.mmlu import Mmlu
    from lsm_probe.evaluation.text_ability_result import TextAbilityResult


def text_ability(
    ckpt: opt.Ckpt,
    mmlu: Annotated[Path | None, typer.Option(help="Folder of MMLU, with dev/ and test/.", metavar="FOLDER")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="JSONL file of samples with `text` and `target`.", metavar="MANIFEST"),
    ] = None,
    out: opt.Out = None,
    base: opt.AdapterBase = None,
    template: opt.Template = None,
    date: opt.Date = None,
    encoder: opt.Encoder = None,
    llm: opt.Llm = None,
    beats: opt.Beats = None,
    shots: Annotated[
        int, typer.Option(help="Examples before each MMLU question.", min=0, rich_help_panel=opt.CONVENTIONS)
    ] = 5,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = 8,
    seed: opt.Seed = 0,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only the first N samples, and N questions of each subject.",
            min=1,
            rich_help_panel=opt.RUNNING,
        ),
    ] = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    verify_precision: opt.VerifyPrecision = 0,
    json: opt.Json = False,
) -> None:
    r"""Measure how much text ability an LLM lost inside an LSM.

    Measures MMLU accuracy through lm-evaluation-harness, and the perplexity of the `target` of each sample, given its
    instruction and its transcript as text. Name the checkpoint before speech training first: the others are compared
    with it. Forgetting rate = (before - after) / before.

    Examples:
        lsm-probe text-ability --ckpt builtin:llm --ckpt my-lsm --mmlu mmlu
        lsm-probe text-ability --ckpt builtin:llm --ckpt my-lsm --mmlu mmlu \
            --shots 0 --limit 20 --data texts.jsonl

    --mmlu takes a folder with dev/SUBJECT_dev.csv and test/SUBJECT_test.csv, as MMLU is published (57 subjects or
    fewer). docs/text-ability.md says how to get the same numbers from the harness's own command.

    Writes result.json, arrays.npz, samples.jsonl, text_ability.csv and, with --mmlu, mmlu_tasks/ (tasks of the
    harness); for several checkpoints also comparison.json.
    """
    if mmlu is None and data is None:
        raise InputError("nothing to measure: give --mmlu FOLDER, --data MANIFEST, or both")
    from functools import cache

    from lsm_probe.cli.run import Samples, read_samples, run_and_show
    from lsm_probe.evaluation import TEXT_ABILITY
    from lsm_probe.evaluation.mmlu import read_mmlu, write_mmlu_tasks
    from lsm_probe.runner.named_checkpoints import named_checkpoints
    from lsm_probe.runner.picture_files import save_frames

    @cache
    def questions() -> Mmlu | None:
        return None if mmlu is None else read_mmlu(mmlu, questions=limit)

    def read() -> Samples:
        samples, about = ([], {}) if data is None else read_samples(data, limit, on_error)
        return samples, {"mmlu": questions(), **about}

    def save(results: Sequence[TextAbilityResult], folder: Path) -> None:
        save_frames(results, folder / "text_ability.csv")
        if (asked := questions()) is not None:
            write_mmlu_tasks(asked, folder / "mmlu_tasks")

    loading = opt.loading_options(
        device=device, dtype=dtype, template=template, date=date, encoder=encoder, llm=llm, beats=beats
    )
    run_and_show(
        replace(TEXT_ABILITY, save_figures=save),
        named_checkpoints(ckpt, loading, base=base, source="text"),
        read,
        out,
        options={
            "shots": shots,
            "batch_size": batch_size,
            "seed": seed,
            "on_error": on_error,
            "verify_precision": verify_precision,
        },
        resume=resume,
        as_json=json,
    )
