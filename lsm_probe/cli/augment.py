"""`lsm-probe augment`: self-powered data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Makes self-powered training data: for each transcript a task and an instruction are drawn, and what the text LLM answers
becomes the target of the speech. One part in seven is speech recognition, whose target is the transcript itself.

Examples:

    lsm-probe augment --data spoken/manifest.jsonl --out self-powered

    lsm-probe augment --data clips.jsonl --llm lmsys/vicuna-7b-v1.5 --template vicuna_text --out self-powered

    lsm-probe augment --data clips.jsonl --task continuation --out continuation-only

    lsm-probe augment --data clips.jsonl --instructions continuation --max-new-tokens 64 --max-prompt-tokens 191
    --out blsp

    lsm-probe augment --data million.jsonl --llm lmsys/vicuna-7b-v1.5 --server vllm --out self-powered

    lsm-probe augment --data million.jsonl --llm lmsys/vicuna-7b-v1.5 --server http://localhost:8000 --workers 4
    --out self-powered

Writes manifest.jsonl (the samples kept), report.json (counts, what was dropped and why, examples), config.yaml and
shards/*.parquet (every sample). With --server also samples.jsonl, checkpoints/ and logs/.
"""


def augment(
    data: Annotated[str, typer.Option(help="JSONL manifest with transcripts (`text`).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Output folder.", show_default=False)],
    llm: Annotated[str, typer.Option(help="The text LLM: a folder, a hub name or `builtin:llm`.")] = "builtin:llm",
    template: Annotated[
        str | None,
        typer.Option(help="Prompt template: vicuna, vicuna_text, llama3 or chat.  [default: the LLM's own]"),
    ] = None,
    date: opt.Date = None,
    instructions: opt.Instructions = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task of the pool. Repeat it for several.", show_default=False)
    ] = None,
    max_new_tokens: opt.MaxNewTokens = 225,
    max_prompt_tokens: Annotated[int, typer.Option(help="Samples with a longer prompt are dropped.", min=1)] = 149,
    keep: Annotated[
        str, typer.Option(help="Answers kept: ending in `punctuation`, `finished` by the LLM, or `all`.")
    ] = "punctuation",
    thinking: Annotated[
        str, typer.Option(help="Of a reasoning LLM: `drop` its thinking from the targets, or `keep` it there.")
    ] = "drop",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Prompts answered together; halved where memory runs out.  [default: 48, with --server 256]",
            min=1,
            rich_help_panel=opt.RUN,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="Answer through `vllm`, started here, or a running OpenAI-compatible server (http://localhost:8000) "
            "that takes prompts of token ids.  [default: transformers in this process]",
            rich_help_panel=opt.RUN,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(help="Processes that send prompts to a running server.", min=1, rich_help_panel=opt.RUN),
    ] = 1,
    seed: opt.DrawSeed = 0,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    from lsm_probe.cli.augmentation import augment_and_report

    augment_and_report(
        data,
        out,
        llm,
        loading=opt.loading(device, dtype, template, date),
        instructions=instructions,
        tasks=task,
        recipe={
            "seed": seed,
            "max_new_tokens": max_new_tokens,
            "max_prompt_tokens": max_prompt_tokens,
            "keep": keep,
            "thinking": thinking,
        },
        batch_size=batch_size,
        server=server,
        workers=workers,
        limit=limit,
        resume=resume,
        on_error=opt.one_of("--on-error", on_error, "fail", "skip"),
        as_json=json,
    )


augment.__doc__ = EXAMPLES
