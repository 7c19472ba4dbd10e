"""`lsm-probe alignment`: how alike an LSM's states are for speech and for its transcript."""

from __future__ import annotations

from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Puts each sample to an LSM twice under the same instruction, with its speech and with its transcript in the source
slot, and says at every layer how alike the two are: cosine with the own and with other transcripts, CKA, retrieval
(also standardised, without the offset between the two), distance of the centres, MMD with a permutation test; and
draws both in one plane by t-SNE. Samples need `audio` and `text`. `builtin:untrained` shows what comes without any
alignment.

Examples:

    lsm-probe alignment --ckpt my-lsm --data clips.jsonl --instruction "Repeat what the speech says."

    lsm-probe alignment --ckpt vanilla --ckpt self-powered --data clips.jsonl --out runs/compared

    lsm-probe alignment --ckpt my-lsm --data clips.jsonl --segment response --response reference --layer 16

Writes result.json, arrays.npz, samples.jsonl, alignment.png, .svg and .csv and alignment_points.csv; with several
checkpoints comparison.json too.
"""


def alignment(
    ckpt: opt.Ckpt,
    data: opt.Data = "builtin:probe",
    out: opt.Out = None,
    template: opt.Template = None,
    date: opt.Date = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="One instruction for all samples.  [default: each sample's own]", show_default=False),
    ] = None,
    layer: Annotated[
        int, typer.Option(help="State of the t-SNE picture: 0 is the embeddings, -1 what comes after all layers.")
    ] = -1,
    perplexity: Annotated[float, typer.Option(help="Of the t-SNE: about how many neighbours place a point.")] = 30.0,
    max_new_tokens: opt.MaxNewTokens = 128,
    response_part: opt.ResponsePart = "all",
    responses: opt.Responses = None,
    segment: Annotated[
        str,
        typer.Option(help="Positions averaged: source, prompt or response.", rich_help_panel=opt.NUMBERS),
    ] = "source",
    response: Annotated[
        str, typer.Option(help="For --segment response: generated or reference.", rich_help_panel=opt.NUMBERS)
    ] = "generated",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = "auto",
    seed: opt.DrawSeed = 0,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    from functools import partial, wraps
    from typing import Any

    from lsm_probe.cli.run import View, probe_and_report
    from lsm_probe.models.checkpoint import Checkpoint
    from lsm_probe.probes.alignment.measure import alignment as measure
    from lsm_probe.probes.alignment.measure import state_numbers
    from lsm_probe.probes.alignment.plot import PICTURES, save_alignment
    from lsm_probe.probes.alignment.result import AlignmentResult
    from lsm_probe.probes.alignment.table import alignment_note, alignment_table

    @wraps(measure)
    def probe(checkpoint: Checkpoint, *args: Any, **options: Any) -> AlignmentResult:
        if layer != -1:  # before the work, not when the picture is drawn
            state_numbers(checkpoint, [layer])
        return measure(checkpoint, *args, **options)

    probe_and_report(
        probe,
        View(alignment_table, alignment_note, partial(save_alignment, layer=layer), PICTURES),
        ckpt,
        data,
        out,
        command="alignment",
        loading=opt.loading(device, dtype, template, date),
        probing={
            "segment": segment,
            "instruction": instruction,
            "response": response,
            "max_new_tokens": max_new_tokens,
            "response_part": response_part,
            "perplexity": perplexity,
            **opt.probing(seed, on_error, batch_size),
        },
        responses=responses,
        limit=limit,
        resume=resume,
        as_json=json,
    )


alignment.__doc__ = EXAMPLES
