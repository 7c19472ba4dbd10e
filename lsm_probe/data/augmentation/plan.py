"""The plan for each sample: its task, its instruction, and the LLM's prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.pools import Assignment
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import NoTokens
from lsm_probe.models.thinking import UNFINISHED


@dataclass(frozen=True)
class Job:
    """The work for one sample."""

    number: int  # index in the data
    sample: Sample  # its own instruction and target are not used
    assignment: Assignment  # its task and instruction
    prompt: list[int]  # token ids of the LLM's prompt
    drop_reason: str | None = None  # why it is dropped before generation, or None

    @property
    def generates(self) -> bool:
        return self.assignment.answer == "llm" and self.drop_reason is None

    def row(
        self,
        recipe: Recipe,
        response: str,
        finish_reason: str,
        response_tokens: int,
        thought: tuple[str, str | None] | None = None,
    ) -> dict[str, Any]:
        """The job with its response as a row of a shard.

        `thought` is the thinking at the start of the response, if any, and the answer after it (None if the thinking
        does not end).
        """
        sample, assignment = self.sample, self.assignment
        thinking, answer = thought if thought is not None and recipe.thinking == "drop" else (None, response)
        response, reason = answer or "", self.drop_reason
        if self.generates:
            reason = UNFINISHED if answer is None else recipe.drop_reason(response, finish_reason)
        return {
            "number": self.number,
            "sample_id": sample.id,
            "audio": str(sample.audio.resolve()) if isinstance(sample.audio, Path) else None,
            "start": sample.start,
            "duration": sample.duration,
            "language": sample.language,
            "text": sample.text,
            "task": assignment.task,
            "instruction_id": assignment.instruction_id,
            "instruction": assignment.instruction,
            "response": response,
            "thinking": thinking,
            "finish_reason": finish_reason,
            "prompt_tokens": len(self.prompt),
            "response_tokens": response_tokens,
            "keep": reason is None,
            "drop_reason": reason,
            "prompt_sha256": hashlib.sha256(json.dumps(self.prompt).encode()).hexdigest()[:16],
        }

    def row_without_generation(self, recipe: Recipe) -> dict[str, Any]:
        """The row of a job whose response is the transcript, or that is dropped."""
        if self.drop_reason is not None:
            return self.row(recipe, "", "", 0)
        assert self.sample.text is not None
        return self.row(recipe, self.sample.text, "transcript", 0)


def plan(checkpoint: Checkpoint, samples: Sequence[Sample], recipe: Recipe, problems: Problems) -> Iterator[Job]:
    """Yields a job for every sample with a transcript, in order; other samples are recorded in `problems`."""
    for number, sample in enumerate(samples):
        with problems.catching(f"sample {sample.id!r}"):
            yield make_job(lambda *texts: checkpoint.encode(*texts).input_ids, number, sample, recipe)


def make_job(encode: Callable[[str, str], list[int]], number: int, sample: Sample, recipe: Recipe) -> Job:
    """Draws a sample's task and instruction; `encode` returns the prompt's token ids for instruction and transcript.

    Raises:
        InputError: the sample has no transcript, or its audio is in memory.
    """
    if sample.text is None:
        raise InputError("has no transcript; add 'text' to it")
    if isinstance(sample.audio, AudioBytes):
        raise InputError(
            "its audio is in memory, and the data set names files: write the samples with lsm_probe.write_manifest, "
            "then read that manifest"
        )
    assignment = recipe.pool.assign(recipe.seed, sample.id)
    if assignment.answer == "transcript":
        encode(assignment.instruction, sample.text)  # refuses texts that training would refuse
        return Job(number, sample, assignment, [])
    try:
        prompt = encode(assignment.instruction, sample.text)
    except NoTokens:
        return Job(number, sample, assignment, [], "no tokens")
    too_long = len(prompt) > recipe.max_prompt_tokens
    return Job(number, sample, assignment, prompt, "prompt too long" if too_long else None)


def digest(samples: Sequence[Sample]) -> str:
    """sha256 (hexadecimal) of all sample content that enters the data set, in order; sound files by their path."""
    total = hashlib.sha256()
    for sample in samples:
        values = sample.model_dump(mode="json", exclude={"instruction", "target", "task", "context"})
        total.update(json.dumps(values, sort_keys=True).encode() + b"\n")
    return total.hexdigest()
