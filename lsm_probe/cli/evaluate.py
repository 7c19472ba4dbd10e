"""`lsm-probe evaluate`: tasks, and what a checkpoint answers to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt
from lsm_probe.errors import InputError


def evaluate(
    task: Annotated[
        list[str],
        typer.Option(help="Name or YAML file, or NAME=MANIFEST. Repeatable.", metavar="TASK", show_default=False),
    ],
    ckpt: opt.OptionalCkpt = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the manifests. [default: the current folder]", metavar="FOLDER")
    ] = None,
    cascade: Annotated[
        list[str] | None,
        typer.Option(help="Text LLM that is given the transcript of --whisper. Repeatable.", metavar="NAME"),
    ] = None,
    whisper: Annotated[
        str, typer.Option(help="Whisper of the cascades: a folder or hub name.", metavar="NAME")
    ] = "builtin:whisper",
    out: opt.Out = None,
    base: opt.AdapterBase = None,
    template: opt.Template = None,
    date: opt.Date = None,
    encoder: opt.Encoder = None,
    llm: opt.Llm = None,
    beats: opt.Beats = None,
    max_new_tokens: opt.MaxNewTokens = 128,
    read: opt.Read = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = 8,
    seed: opt.Seed = 0,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N samples of each task.", min=1, rich_help_panel=opt.RUNNING)
    ] = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    verify_precision: opt.VerifyPrecision = 0,
    json: opt.Json = False,
) -> None:
    r"""Score the responses of checkpoints to tasks.

    Responses are decoded greedily. Correctness and the share of responses in the requested form are scored separately,
    because speech anchor bias destroys the form. Every score has a 95 % interval. A task is a YAML file: one of the
    package's (`--task list` prints them) or your own. Its samples are read from the manifest that it names, below
    --data, or from the manifest after `=`.

    Examples:
        lsm-probe evaluate --task list
        lsm-probe evaluate --ckpt my-lsm --data manifests --task librispeech-clean
        lsm-probe evaluate --ckpt my-lsm --cascade builtin:llm \
            --task boolq=spoken/dev.boolq.jsonl
        lsm-probe evaluate --ckpt my-lsm --task mood.yaml --out runs/mood

    Writes result.json, samples.jsonl (the responses), arrays.npz, metrics.json, metrics.csv and table.md.
    """
    from lsm_probe.evaluation.task import builtin_tasks, read_task, read_tasks, with_read

    if task == ["list"]:
        for name in builtin_tasks():
            listed = read_task(name)
            print(f"{name}: {listed.title}; {', '.join(listed.metrics)}; {listed.manifest}")
        return
    if not ckpt and not cascade:
        raise InputError("there is nothing to evaluate: give --ckpt or --cascade")

    from lsm_probe.cli.run import Samples, run_and_show
    from lsm_probe.data.manifest import describe_data
    from lsm_probe.evaluation import EVALUATION
    from lsm_probe.evaluation.cascade import named_cascade
    from lsm_probe.runner.named_checkpoints import named_checkpoints

    def read_samples() -> Samples:
        tasks, samples = read_tasks(task, data=data, limit=limit, on_error=on_error)
        names = "+".join(task.name for task in tasks)
        return samples, {"tasks": with_read(tasks, read), "data": describe_data(samples, names)}

    loading = opt.loading_options(
        device=device, dtype=dtype, template=template, date=date, encoder=encoder, llm=llm, beats=beats
    )
    run_and_show(
        EVALUATION,
        [
            *named_checkpoints(ckpt or (), loading, base=base),
            *(named_cascade(whisper, llm, loading) for llm in cascade or ()),
        ],
        read_samples,
        out,
        options={
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "seed": seed,
            "on_error": on_error,
            "verify_precision": verify_precision,
        },
        resume=resume,
        as_json=json,
    )
