"""`lsm-probe knockout`: what the response loses without instruction or source."""

from __future__ import annotations

from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Cuts the response off from the instruction, and from the source, in windows of layers, and measures how much less
likely the response becomes. Causal eta = fall_i / (fall_i + fall_s), by layer. What other tokens took from a segment
before still gets through: the instruction reaches the response through the speech tokens, for example.

Examples:

    lsm-probe knockout --ckpt my-lsm --data clips.jsonl

    lsm-probe knockout --ckpt vanilla --ckpt self-powered --response reference --window 9 --out runs/compared

Writes result.json, arrays.npz, samples.jsonl, knockout.png, .svg and .csv; with several checkpoints comparison.json
too.
"""


def knockout(
    ckpt: opt.Ckpt,
    data: opt.Data = "builtin:probe",
    out: opt.Out = None,
    template: opt.Template = None,
    max_new_tokens: opt.MaxNewTokens = 128,
    responses: opt.Responses = None,
    window: Annotated[
        int, typer.Option(help="Layers cut together, round each layer in turn.", rich_help_panel=opt.NUMBERS)
    ] = 5,
    response: opt.Response = "generated",
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
    from lsm_probe.cli.tables.knockout import knockout_note, knockout_table
    from lsm_probe.plots.knockout import PICTURES, save_knockout
    from lsm_probe.probes.knockout import knockout as probe

    probe_and_report(
        probe,
        View(knockout_table, knockout_note, save_knockout, PICTURES),
        ckpt,
        data,
        out,
        command="knockout",
        loading=opt.loading(device, dtype, template),
        probing={
            "window": window,
            "response": response,
            "max_new_tokens": max_new_tokens,
            **opt.probing(seed, on_error, batch_size),
        },
        responses=responses,
        limit=limit,
        resume=resume,
        as_json=json,
    )


knockout.__doc__ = EXAMPLES
