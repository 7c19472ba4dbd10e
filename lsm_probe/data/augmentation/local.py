"""Generation in this process with transformers: batches of similar length, one shard at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lsm_probe.data.augmentation.plan import Job
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.augmentation.shards import remove_leftovers, rows_in, write_shard
from lsm_probe.errors import InputError
from lsm_probe.memory import run_in_halves
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt
from lsm_probe.models.thinking import find_thought, text_after_user_in

BATCH_SIZE = 48
"""Prompts in a batch. On one CPU core, 48 are 1.8 times as fast as 16 (`analyses/performance/generation.json`)."""

SHARD_ROWS = 128
"""Rows of a shard; a killed run loses at most this many answers."""


def generate_shards(
    checkpoint: Checkpoint,
    jobs: Sequence[Job],
    folder: Path,
    recipe: Recipe,
    *,
    batch_size: int,
    on_progress: Callable[[int, int, float], None],
) -> None:
    """Generates greedy responses to the jobs, as `00000.parquet`, ... in `folder`; existing shards are kept.

    Args:
        checkpoint: the text LLM.
        jobs: all jobs, even if some are done, because their order determines the shard of each job.
        batch_size: prompts in one batch; halved if memory runs out. It changes the numbers only by rounding.
        on_progress: called with jobs done, response tokens and seconds of this run.

    Raises:
        InputError: a single prompt does not fit into memory.
    """
    # Neighbours share a task, with responses of similar length, and a prompt length. This minimises padding.
    ordered = sorted(jobs, key=lambda job: (job.assignment.task, len(job.prompt), job.number))
    remove_leftovers(folder)
    tokens, seconds = 0, 0.0
    for number, start in enumerate(range(0, len(ordered), SHARD_ROWS)):
        shard = ordered[start : start + SHARD_ROWS]
        path = folder / f"{number:05d}.parquet"
        if rows_in(path) is None:
            began = time.monotonic()
            rows = [job.row_without_generation(recipe) for job in shard if not job.generates]
            generating = [job for job in shard if job.generates]
            for first in range(0, len(generating), batch_size):
                batch = generating[first : first + batch_size]
                rows += answer(checkpoint, batch, recipe)
                elapsed = seconds + time.monotonic() - began
                on_progress(start + len(rows), tokens + sum(row["response_tokens"] for row in rows), elapsed)
            tokens += sum(row["response_tokens"] for row in rows)
            seconds += time.monotonic() - began
            write_shard(path, rows, time.monotonic() - began)
        on_progress(start + len(shard), tokens, seconds)


def answer(checkpoint: Checkpoint, jobs: Sequence[Job], recipe: Recipe) -> list[dict[str, Any]]:
    """Rows of jobs that are run together, left-padded, greedily."""

    def run(batch: Sequence[Job]) -> list[dict[str, Any]]:
        prompts = [Prompt(job.prompt, []) for job in batch]
        answers = checkpoint.generate(checkpoint.embed(prompts), max_new_tokens=recipe.max_new_tokens)
        opening = text_after_user_in(checkpoint.tokenizer, checkpoint.template)
        return [_row(checkpoint, job, ids, recipe, opening) for job, ids in zip(batch, answers, strict=True)]

    def alone(job: Job, error: Exception) -> dict[str, Any]:
        raise InputError(
            f"sample {job.sample.id!r} alone does not fit into memory: lower --max-prompt-tokens or --max-new-tokens"
        ) from error

    return run_in_halves(run, jobs, alone)


def _row(checkpoint: Checkpoint, job: Job, ids: list[int], recipe: Recipe, opening: str) -> dict[str, Any]:
    ended = bool(ids) and ids[-1] in checkpoint.eos_token_ids
    thought = find_thought(checkpoint.tokenizer, ids, opening, ended=ended)
    parts = None if thought is None else (thought.text, thought.answer)
    return job.row(recipe, checkpoint.decode(ids), "stop" if ended else "length", len(ids), parts)
