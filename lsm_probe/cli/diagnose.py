"""`lsm-probe diagnose`: all measurements, and a verdict about each checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def diagnose(
    ckpt: opt.Ckpt,
    data: opt.Data = "builtin:probe",
    base: Annotated[
        str | None,
        typer.Option(
            help="Text LLM inside the checkpoints, which they are compared with; also the base of PEFT adapters. "
            "[default: the first text LLM in --ckpt]",
            metavar="NAME",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only attention, sensitivity and transcription.")] = False,
    utterances: Annotated[int, typer.Option(help="At most N utterances, with one sample of each.", min=1)] = 48,
    out: opt.Out = None,
    instructions: opt.Instructions = None,
    template: opt.Template = None,
    date: opt.Date = None,
    encoder: opt.Encoder = None,
    llm: opt.Llm = None,
    beats: opt.Beats = None,
    max_new_tokens: opt.MaxNewTokens = 24,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = 8,
    seed: opt.Seed = 0,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    verify_precision: opt.VerifyPrecision = 0,
    json: opt.Json = False,
) -> None:
    r"""Give a verdict about each checkpoint, from several measurements.

    The verdict is one of: follows the instruction; ignores the instruction (speech anchor bias); does not use the
    speech; in between; cannot tell. It comes with its numbers, their 95 % intervals, and the evidence against it.
    Measured are attention, sensitivity, attention knockout, alignment, and the word error rate of transcription.
    Alignment, word error rate and --base need transcripts (`text`), and are left out without them.

    Examples:
        lsm-probe diagnose --ckpt my-lsm --base my-llm --data clips.jsonl
        lsm-probe diagnose --ckpt before --ckpt after --base my-llm --data clips.jsonl
        lsm-probe diagnose --ckpt builtin:vanilla_asr --data builtin:commands --quick

    Writes report.html, diagnosis.json, and a folder for each measurement.
    """
    import json as as_json
    import sys

    from lsm_probe.cli.run import progress_on_main, read_samples, start
    from lsm_probe.cli.stopping import stoppable
    from lsm_probe.console import text_console
    from lsm_probe.data.pools import read_pool
    from lsm_probe.diagnosis import FILE
    from lsm_probe.diagnosis.table import MAIN, verdict_table
    from lsm_probe.distributed import is_main_rank
    from lsm_probe.reports.diagnose import REPORT
    from lsm_probe.reports.diagnose import diagnose as diagnose_checkpoints
    from lsm_probe.runner.output_folder import folder_name

    out = out or Path("runs") / "diagnose" / folder_name(*ckpt)
    samples, about = start(out, [*ckpt, *([base] if base else [])], lambda: read_samples(data, limit, on_error))

    def print_estimate(seconds: float) -> None:
        if is_main_rank():
            print(f"expected time: about {_duration(seconds)}, if all models are as fast as the first", file=sys.stderr)

    with stoppable(), progress_on_main() as on_progress:
        found = diagnose_checkpoints(
            ckpt,
            samples,
            base=base,
            out=out,
            quick=quick,
            utterances=utterances,
            max_new_tokens=max_new_tokens,
            instructions=read_pool(*instructions) if instructions else None,
            batch_size=batch_size,
            seed=seed,
            on_error=on_error,
            verify_precision=verify_precision,
            data_name=about["data"].name,
            loading=opt.loading_options(
                device=device, dtype=dtype, template=template, date=date, encoder=encoder, llm=llm, beats=beats
            ),
            resume=resume,
            on_progress=on_progress,
            on_estimate=print_estimate,
        )
    if not is_main_rank():
        return
    if json:
        print(as_json.dumps(found.to_dict(), ensure_ascii=False))
        return
    console = text_console()
    console.print(verdict_table(found.verdicts, MAIN).to_rich())
    for verdict in found.verdicts:
        console.print(f"{verdict.checkpoint}: {verdict.reason}", highlight=False)
        for line in verdict.missing:
            console.print(f"  missing: {line}", highlight=False)
        for line in verdict.warnings:
            print(f"warning: {verdict.checkpoint}: {line}", file=sys.stderr)
    for part, reason in found.left_out.items():
        console.print(f"{part} was not measured: {reason}", highlight=False)
    for line in found.precision:
        console.print(line, highlight=False)
    measured = found.settings["utterances"]["attention"]
    if measured < len(samples):
        why = f"one of each utterance, of at most {utterances} utterances (--utterances)"
        console.print(f"measured on {measured} of {len(samples)} samples: {why}", highlight=False)
    written = [name for name in (REPORT, FILE) if (out / name).exists()]
    console.print(f"written to {out}: {', '.join(written)}, and a folder for each measurement")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 120:
        return f"{seconds / 3600:.1f} hours"
    return f"{minutes} minutes" if minutes > 1 else f"{max(10, round(seconds, -1)):.0f} seconds"
