"""A self-powered data set from a manifest, in one folder, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lsm_probe.data.augmentation.collect import SHARDS, collect
from lsm_probe.data.augmentation.local import BATCH_SIZE, generate_shards
from lsm_probe.data.augmentation.plan import Job, digest, plan
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.folders import work_folder
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.progress import notebook_progress


def augment(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    resume: bool = False,
    on_error: OnError = "fail",
    problems: Problems | None = None,
    on_progress: Callable[[int, int, float, int], None] | None = None,
) -> dict[str, Any]:
    """Makes self-powered data: each sample gets a task and an instruction, and the text LLM's response as target.

    Writes `manifest.jsonl` (the samples kept, for training), `report.json`, `config.yaml` and `shards/*.parquet` (every
    sample, kept or dropped, with its prompt's hash, finish reason and token counts).

    Args:
        checkpoint: a text LLM; the LSM to be trained should contain the same LLM.
        samples: with transcripts; their own instructions, targets and contexts are ignored.
        out: the output folder.
        recipe: the settings; those of the paper by default.
        batch_size: prompts in one batch; halved if memory runs out.
        resume: continue in the folder of an interrupted run.
        on_error: for a sample without a transcript: `fail`, or `skip` and count it.
        problems: problems of the data that were found before, reported together with those found here.
        on_progress: called with samples done, response tokens and seconds of this run, samples in all; by default only
            notebooks show a bar.

    Returns:
        The report; see [`collect`].

    Raises:
        InputError: the checkpoint is not a text LLM, prompts and responses may exceed its context, or samples or folder
            cannot be used.
    """
    out, recipe = Path(out), recipe or Recipe()
    if checkpoint.source != "text":
        raise InputError(f"{checkpoint.name} is an LSM; give the text LLM whose answers are to be the targets")
    problems = problems or Problems()
    jobs = list(plan(checkpoint, samples, recipe, problems))
    problems.settle(on_error)
    if not jobs:
        raise InputError("no sample has a transcript; add 'text' to the manifest")
    _check_context(checkpoint, jobs, recipe)
    config = {
        "command": "augment",
        "llm": {"name": checkpoint.name, "template": checkpoint.template.name, **checkpoint.identity.to_dict()},
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "data_sha256": digest([job.sample for job in jobs]),
        "recipe": recipe.to_dict(),
    }
    with work_folder(out, config, resume=resume), notebook_progress() as show:
        report = on_progress or (lambda done, tokens, seconds, total: show(checkpoint.name, done, total))
        generate_shards(
            checkpoint,
            jobs,
            out / SHARDS,
            recipe,
            batch_size=batch_size,
            on_progress=lambda done, tokens, seconds: report(done, tokens, seconds, len(jobs)),
        )
        problems.write(out)
        return collect(out, [job.sample.id for job in jobs]) | {"left_out": problems.found}


def _check_context(checkpoint: Checkpoint, jobs: Sequence[Job], recipe: Recipe) -> None:
    limit, longest = checkpoint.context_length, max(len(job.prompt) for job in jobs)
    if limit is not None and min(longest, recipe.max_prompt_tokens) + recipe.max_new_tokens > limit:
        raise InputError(
            f"prompts of up to {min(longest, recipe.max_prompt_tokens)} tokens and answers of {recipe.max_new_tokens} "
            f"exceed the context of {limit} tokens of {checkpoint.name}: lower --max-prompt-tokens or --max-new-tokens"
        )
