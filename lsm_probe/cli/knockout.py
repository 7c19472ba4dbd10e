"""`lsm-probe knockout`: what the response loses without instruction or source."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from lsm_probe.cli import options as opt
from lsm_probe.errors import InputError

EXAMPLES = """
Cuts the response off from the instruction, and from the source, in windows of layers, and measures how much less
likely the response becomes. Causal eta = fall_i / (fall_i + fall_s), by layer. What other tokens took from a segment
before still gets through: the instruction reaches the response through the speech tokens, for example.

Examples:

    lsm-probe knockout --ckpt my-lsm --data clips.jsonl

    lsm-probe knockout --ckpt vanilla --ckpt self-powered --response reference --window 9 --out runs/compared

    lsm-probe knockout --ckpt my-lsm --data clips.jsonl --heads --layers 12-23 --max-new-tokens 16

With --heads single heads are cut off too, each of them alone: 2 x layers x heads knockouts more for each sample, which
takes as many times as long as the windows alone as a layer has heads. A *speech-anchor head* is one without whose view
of the speech the response loses (p < 0.05, corrected for the number of heads) and loses more than without its view of
the instruction, which by itself is not found to cost it anything; an *instruction head* is the mirror. Single falls are
small, and with four utterances or fewer no head can be found.

Writes result.json, arrays.npz, samples.jsonl, knockout.png, .svg and .csv, with --heads knockout_heads.png, .svg and
.csv; with several checkpoints comparison.json too.
"""


def knockout(
    ckpt: opt.Ckpt,
    data: opt.Data = "builtin:probe",
    out: opt.Out = None,
    template: opt.Template = None,
    date: opt.Date = None,
    max_new_tokens: opt.MaxNewTokens = 128,
    response_part: opt.ResponsePart = "all",
    responses: opt.Responses = None,
    window: Annotated[
        int, typer.Option(help="Layers cut together, round each layer in turn.", rich_help_panel=opt.NUMBERS)
    ] = 5,
    heads: Annotated[
        bool, typer.Option("--heads", help="Cut off single heads too.", rich_help_panel=opt.NUMBERS)
    ] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Only heads of this layer, or of a range as 12-23.", rich_help_panel=opt.NUMBERS),
    ] = None,
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
    from lsm_probe.probes.knockout.measure import knockout as probe
    from lsm_probe.probes.knockout.plot import HEAD_PICTURES, PICTURES, save_knockout
    from lsm_probe.probes.knockout.table import knockout_note, knockout_table

    probe_and_report(
        probe,
        View(knockout_table, knockout_note, save_knockout, (*PICTURES, *HEAD_PICTURES)),
        ckpt,
        data,
        out,
        command="knockout",
        loading=opt.loading(device, dtype, template, date),
        probing={
            "window": window,
            "heads": heads,
            "layers": None if layers is None else [layer for part in layers for layer in _layers(part)],
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


def _layers(part: str) -> range:
    """`12`, or `12-23` with both ends."""
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)  # four digits: a range is made before the model is known
    layers = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not layers:
        raise InputError(f"--layers {part[:40]!r} is neither a layer nor a range of layers such as 12-23")
    return layers


knockout.__doc__ = EXAMPLES
