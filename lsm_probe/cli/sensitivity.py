"""`lsm-probe sensitivity`: what the instruction is worth to the response."""

from __future__ import annotations

from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Measures, without looking at attention, how much the response depends on the instruction and on the source: how much
likelier it is under its own instruction than under a pool of instructions of other tasks (D_i), and under its own
source than under other samples' (D_s). D_i near 0: the instruction is ignored. info-eta = D_i / (D_i + D_s).

Examples:

    lsm-probe sensitivity --ckpt my-lsm --data clips.jsonl --instructions probing

    lsm-probe sensitivity --ckpt vanilla --ckpt self-powered --response reference --out runs/compared

    lsm-probe sensitivity --ckpt my-lsm --data clips.jsonl --instructions generation --pool paraphrases

Writes result.json, arrays.npz, samples.jsonl, sensitivity.png, .svg and .csv and sensitivity_tokens.csv; with several
checkpoints comparison.json too.
"""


def sensitivity(
    ckpt: opt.Ckpt,
    data: opt.Data = "builtin:probe",
    out: opt.Out = None,
    template: opt.Template = None,
    date: opt.Date = None,
    max_new_tokens: opt.MaxNewTokens = 128,
    response_part: opt.ResponsePart = "all",
    responses: opt.Responses = None,
    instructions: opt.Instructions = None,
    sources: Annotated[
        int | None,
        typer.Option(help="Size of the pool of sources.  [default: that of the pool of instructions]", min=2),
    ] = None,
    pool: Annotated[
        str,
        typer.Option(help="tasks, or paraphrases of the same task (the control).", rich_help_panel=opt.NUMBERS),
    ] = "tasks",
    per: Annotated[str, typer.Option(help="token or response.", rich_help_panel=opt.NUMBERS)] = "token",
    response: opt.Response = "generated",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = "auto",
    seed: opt.DrawSeed = 0,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    from lsm_probe.cli.run import View, probe_and_report
    from lsm_probe.data.pools import read_pool
    from lsm_probe.probes.sensitivity.measure import sensitivity as probe
    from lsm_probe.probes.sensitivity.plot import PICTURES, save_sensitivity
    from lsm_probe.probes.sensitivity.table import sensitivity_note, sensitivity_table

    probe_and_report(
        probe,
        View(sensitivity_table, sensitivity_note, save_sensitivity, PICTURES),
        ckpt,
        data,
        out,
        command="sensitivity",
        loading=opt.loading(device, dtype, template, date),
        probing={
            "per": per,
            "pool": pool,
            "instructions": read_pool(*instructions) if instructions else None,
            "sources": sources,
            "response": response,
            "max_new_tokens": max_new_tokens,
            "response_part": response_part,
            **opt.probing(seed, on_error, batch_size),
        },
        responses=responses,
        limit=limit,
        resume=resume,
        as_json=json,
    )


sensitivity.__doc__ = EXAMPLES
