"""`lsm-probe attention`: eta by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Measures, layer by layer, how much of the norm-based attention of the response goes to the instruction and how much
to the speech: eta = S_instruction / (S_instruction + S_source). 0.5 is balanced, low is speech anchor bias.

Examples:

    lsm-probe attention --ckpt my-lsm --data clips.jsonl

    lsm-probe attention --ckpt builtin:llm --ckpt builtin:untrained --out runs/first

    lsm-probe attention --ckpt my-lsm --heads mean_of_norms --response reference --json

    lsm-probe attention --ckpt my-lsm --backend nnsight --responses runs/attention/my-lsm --out runs/second-opinion

Writes result.json, arrays.npz, samples.jsonl, and eta and eta_heads (single heads) as .png, .svg and .csv; with
several checkpoints comparison.json too.
"""


def attention(
    ckpt: opt.Ckpt,
    data: opt.Data = "builtin:probe",
    out: opt.Out = None,
    template: opt.Template = None,
    date: opt.Date = None,
    max_new_tokens: opt.MaxNewTokens = 128,
    response_part: opt.ResponsePart = "all",
    responses: opt.Responses = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Store the score of every prompt token too.")] = False,
    heads: Annotated[
        str, typer.Option(help="sum_then_norm or mean_of_norms.", rich_help_panel=opt.NUMBERS)
    ] = "sum_then_norm",
    segment: Annotated[str, typer.Option(help="mean or sum over tokens.", rich_help_panel=opt.NUMBERS)] = "mean",
    aggregate: Annotated[
        str, typer.Option(help="mean_of_ratios or ratio_of_means.", rich_help_panel=opt.NUMBERS)
    ] = "mean_of_ratios",
    span: Annotated[
        str, typer.Option(help="instruction or instruction+template.", rich_help_panel=opt.NUMBERS)
    ] = "instruction",
    response: opt.Response = "generated",
    backend: Annotated[
        str,
        typer.Option(
            help="Whose activations are read: native, or for a second opinion transformer-lens or nnsight.",
            rich_help_panel=opt.RUN,
        ),
    ] = "native",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    run(
        ckpt,
        data,
        out,
        command="attention",
        loading=opt.loading(device, dtype, template, date),
        probing={
            "heads": heads,
            "segment": segment,
            "aggregate": aggregate,
            "span": span,
            "response": response,
            "max_new_tokens": max_new_tokens,
            "response_part": response_part,
            "tokens": tokens,
            "backend": opt.one_of("--backend", backend, "native", "transformer-lens", "nnsight"),
            **opt.probing(seed, on_error, batch_size),
        },
        responses=responses,
        limit=limit,
        resume=resume,
        as_json=json,
    )


def run(names: list[str], data: str, out: Path | None, **options: Any) -> None:
    """Runs the attention probe with its table, pictures and control; the demo does the same."""
    from lsm_probe.cli.run import View, probe_and_report
    from lsm_probe.probes.attention.controls import length_controls
    from lsm_probe.probes.attention.measure import attention
    from lsm_probe.probes.attention.plot import PICTURES, save_eta
    from lsm_probe.probes.attention.table import attention_note, attention_table

    view = View(attention_table, attention_note, save_eta, PICTURES)
    probe_and_report(attention, view, names, data, out, controls=length_controls, **options)


attention.__doc__ = EXAMPLES
