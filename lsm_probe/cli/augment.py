"""`lsm-probe augment`: makes self-powered data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt
from lsm_probe.data.augmentation import Keep, Thinking


def augment(
    data: Annotated[str, typer.Option(help="JSONL file of samples with transcripts (`text`).", metavar="MANIFEST")],
    out: Annotated[Path, typer.Option(help="Output folder.", metavar="FOLDER")],
    llm: Annotated[str, typer.Option(help="Text LLM: a folder or hub name.", metavar="NAME")] = "builtin:llm",
    template: opt.Template = None,
    date: opt.Date = None,
    instructions: opt.Instructions = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task of the pool. Repeatable.", metavar="TASK")
    ] = None,
    max_new_tokens: opt.MaxNewTokens = 225,
    max_prompt_tokens: Annotated[int, typer.Option(help="Drop samples with a longer prompt.", min=1)] = 149,
    keep: Annotated[
        Keep, typer.Option(help="Answers to keep: those that end in punctuation, those that the LLM finished, or all.")
    ] = "punctuation",
    thinking: Annotated[Thinking, typer.Option(help="What to do with the thinking of reasoning LLMs.")] = "drop",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Prompts answered together; halved if memory runs out. [default: 48; 256 with --server]",
            min=1,
            rich_help_panel=opt.RUNNING,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="vllm (started by this command), or the address of a running OpenAI-compatible server, such as "
            "http://localhost:8000. [default: transformers in this process]",
            metavar="SERVER",
            rich_help_panel=opt.RUNNING,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(help="Processes that send prompts to the server.", min=1, rich_help_panel=opt.RUNNING),
    ] = 1,
    seed: opt.DrawSeed = 0,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    r"""Make self-powered data: a text LLM's answers become the targets.

    For each transcript a task and an instruction are drawn. The answer of the LLM is the target for the speech. In one
    seventh of the samples the task is speech recognition, and the target is the transcript.

    Examples:
        lsm-probe augment --data spoken/manifest.jsonl --out self-powered
        lsm-probe augment --data clips.jsonl --llm lmsys/vicuna-7b-v1.5 \
            --template vicuna_text --out self-powered
        lsm-probe augment --data clips.jsonl --task continuation --out continuation-only
        lsm-probe augment --data million.jsonl --llm lmsys/vicuna-7b-v1.5 \
            --server vllm --out self-powered

    Writes manifest.jsonl (the samples kept), report.json (counts, what was dropped and why, examples), config.yaml and
    shards/*.parquet (every sample); with --server also samples.jsonl, checkpoints/ and logs/.
    """
    from json import dumps

    from lsm_probe.cli.progress import progress, quiet_transformers
    from lsm_probe.cli.stopping import stoppable
    from lsm_probe.data.augmentation.engines import load_engine
    from lsm_probe.data.augmentation.recipe import POOLS, Recipe
    from lsm_probe.data.augmentation.table import show_report
    from lsm_probe.data.manifest import scan_manifest
    from lsm_probe.data.pools import read_pool
    from lsm_probe.data.problems import Problems
    from lsm_probe.files import check_can_write

    quiet_transformers()
    check_can_write("--out", out, folder=True)
    pool = read_pool(*(instructions or POOLS))
    recipe = Recipe(pool.only(task) if task else pool, seed, max_new_tokens, max_prompt_tokens, keep, thinking)
    problems = Problems()
    samples = [sample for _, sample in list(scan_manifest(data, problems))[:limit]]
    engine = load_engine(
        llm,
        loading={"device": device, "dtype": dtype, "template": template, "date": date},
        server=server,
        workers=workers,
        batch_size=batch_size,
    )
    with stoppable(), progress() as on_progress:

        def show(done: int, tokens: int, seconds: float, total: int) -> None:
            on_progress(llm, done, total, f"{tokens / seconds:.0f} tokens/s" if seconds else "")

        report = engine(samples, out, recipe, resume=resume, on_error=on_error, problems=problems, on_progress=show)
    if json:
        print(dumps(report, ensure_ascii=False))
    else:
        show_report(report, out)
