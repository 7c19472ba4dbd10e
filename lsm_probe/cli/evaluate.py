"""`lsm-probe evaluate`: tasks, and what a checkpoint answers to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Puts tasks to checkpoints, greedily, and scores the responses: correctness, and apart from it whether a response has
the asked-for form, which is what speech anchor bias destroys. Every score has a bootstrap interval.

A task is a small YAML file: one of the package's (`--task list` prints them) or your own. Its samples are read from
the manifest that it names, below --data, or from the one after `=`.

Examples:

    lsm-probe evaluate --ckpt my-lsm --data manifests --task librispeech-clean --task fluent-speech-commands

    lsm-probe evaluate --ckpt my-lsm --ckpt builtin:llm --cascade builtin:llm --task boolq=spoken/dev.boolq.jsonl

    lsm-probe evaluate --ckpt my-lsm --task mood.yaml --out runs/mood

Writes result.json, samples.jsonl (the predictions), arrays.npz, metrics.json, metrics.csv and table.md; with several
checkpoints a folder each and comparison.json. `lsm-probe score` scores the predictions again, without a model.
"""


def evaluate(
    task: Annotated[
        list[str], typer.Option(help="Name or YAML file, perhaps with =MANIFEST. Repeat it.", show_default=False)
    ],
    ckpt: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder, hub name, or built in: `builtin:llm` (text LLM), `builtin:untrained`, `builtin:vanilla_asr`, "
            "`builtin:self_powered` (LSMs). Repeat it to compare.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the manifests that tasks name.  [default: the current one]")
    ] = None,
    cascade: Annotated[
        list[str] | None,
        typer.Option(help="A text LLM that answers to what --whisper has heard. Repeat it to compare."),
    ] = None,
    whisper: Annotated[
        str, typer.Option(help="Recogniser of the cascades: folder, hub name or builtin:whisper.")
    ] = "builtin:whisper",
    out: opt.Out = None,
    template: opt.Template = None,
    date: opt.Date = None,
    max_new_tokens: opt.MaxNewTokens = 128,
    read: opt.Read = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N samples of each task.", min=1, rich_help_panel=opt.RUN)
    ] = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    from lsm_probe.cli.evaluation import evaluate_and_report, list_tasks

    if task == ["list"]:
        return list_tasks()
    evaluate_and_report(
        task,
        ckpt or [],
        data,
        out,
        cascades=cascade or [],
        whisper=whisper,
        read=read,
        loading=opt.loading(device, dtype, template, date),
        evaluating={"max_new_tokens": max_new_tokens, **opt.probing(seed, on_error, batch_size)},
        limit=limit,
        resume=resume,
        as_json=json,
    )


evaluate.__doc__ = EXAMPLES
