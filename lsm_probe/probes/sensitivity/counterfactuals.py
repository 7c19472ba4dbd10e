"""The other instructions and the other sources that a sample's response is scored under."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from lsm_probe.data.pools import Pool, Task
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.runner.prepared_samples import read_source

_LARGEST_POOL = 32
"""Maximum size of a pool from the samples' instructions, because each sample is scored with every prompt of it."""
_SOURCES_KEPT = 512
"""Encoded sources kept in memory: 30 speech tokens of 4,096 numbers each are 0.5 MB."""


def pool_of(samples: Sequence[Sample]) -> Pool:
    """The samples' own instructions, by task; if samples name no tasks, each instruction is a task.

    Raises:
        InputError: they cannot form a pool: an instruction has a placeholder, or a task's name is blank.
    """
    wordings: dict[str, dict[str, None]] = {}
    for sample in samples:
        wordings.setdefault(sample.task or sample.instruction, {})[sample.instruction] = None
    if len(wordings) > _LARGEST_POOL:
        raise InputError(
            f"the samples carry instructions of {len(wordings)} tasks, or name no tasks: give a pool to --instructions"
        )
    try:
        return Pool(tuple(Task(task=task, instructions=list(found)) for task, found in wordings.items()))
    except ValidationError as error:
        reason = " ".join(error.errors(include_url=False)[0]["msg"].split())
        raise InputError(
            f"the samples' own instructions cannot be used as a pool ({reason}): give one to --instructions"
        ) from error


def other_instructions(sample: Sample, pool: Pool, kind: Literal["tasks", "paraphrases"]) -> list[str]:
    """The instructions of the pool other than the sample's own.

    Args:
        sample: it names its task, or its instruction is one of the pool's wordings.
        pool: tasks and their wordings; the first wording in the first language represents a task.
        kind: `tasks` gives one instruction for each other task; `paraphrases` gives the other wordings of the sample's
            own task, in the language it asks for.

    Raises:
        InputError: the pool has no other instruction for this sample.
    """
    own = sample.instruction.strip()
    mine = [task for task in pool.tasks if task.task == sample.task or _language_of(own, task) is not None]
    if kind == "paraphrases":
        others = [words for task in mine for words in _wordings(task, _asked_for(own, task)) if words != own]
        reason = "the pool holds no other wording of its task: give one with several wordings to --instructions"
    else:
        others = [_wordings(task)[0] for task in pool.tasks if task not in mine]
        reason = (
            "the pool has one instruction, and sensitivity needs at least two: give one with other tasks to "
            "--instructions, such as `probing`"
        )
    if not others:
        raise InputError(reason)
    return others


def _language_of(instruction: str, task: Task) -> str | None:
    """The language of the wording that equals the instruction ("" for a task without languages); None if none equals
    it."""
    return next((x for x in task.languages or [""] if instruction in _wordings(task, x)), None)


def _asked_for(instruction: str, task: Task) -> str | None:
    """The language that an instruction asks for: that of the equal wording, or the language it names.

    Raises:
        InputError: the task has languages and the instruction names none of them.
    """
    language = _language_of(instruction, task)
    if language is None and task.languages:
        language = next((name for name in task.languages if name.lower() in instruction.lower()), None)
        if language is None:
            raise InputError(
                f"{instruction!r} asks for none of the languages of task {task.task}: it has no paraphrase"
            )
    return language


def _wordings(task: Task, language: str | None = None) -> list[str]:
    language = language or (task.languages[0] if task.languages else None)
    return [task.fill(number, language).strip() for number in range(len(task.instructions))]


class OtherSources:
    """Draws sources of other utterances for each sample; each source is read and encoded once.

    All utterances form one shuffled circle. A sample gets the sources that follow its own utterance there, so that each
    source is drawn equally often. Utterances of the same words are skipped.

    Args:
        checkpoint: encodes the speech.
        samples: all samples.
        seed: of the shuffle.
        on_error: `skip` leaves out a source that cannot be used.
    """

    def __init__(self, checkpoint: Checkpoint, samples: Sequence[Sample], seed: int, on_error: str):
        self.checkpoint, self.on_error = checkpoint, on_error
        distinct = list({sample.utterance: sample for sample in samples}.values())
        self.circle = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
        self.place = {sample.utterance: i for i, sample in enumerate(self.circle)}
        self._kept: dict[tuple[str, torch.dtype], Any] = {}

    def draw(self, sample: Sample, number: int, fits: Callable[[Any], None] = lambda source: None) -> list[Any]:
        """The sources of `number` other utterances, or of all if there are fewer: transcripts or speech tokens.

        Args:
            sample: the sample whose source they replace.
            number: how many.
            fits: raises InputError for a source that cannot be used for this sample.

        Raises:
            InputError: there is no other utterance, or a source cannot be used (unless `on_error` is `skip`).
        """
        found = list(islice(self._usable(sample, fits), number))
        if not found:
            raise InputError(
                "sensitivity needs at least two different utterances, and the samples have one: give more samples"
            )
        return found

    def _usable(self, sample: Sample, fits: Callable[[Any], None]) -> Iterator[Any]:
        start = self.place[sample.utterance]
        for other in (*self.circle[start + 1 :], *self.circle[:start]):
            if sample.text is not None and other.text is not None and sample.text.strip() == other.text.strip():
                continue
            try:
                source = self.read(other)
                fits(source)
            except InputError as error:
                if self.on_error == "fail":
                    raise InputError(f"with the source of sample {other.id}: {error}") from error
                continue
            yield source

    def read(self, sample: Sample) -> Any:
        """A sample's source in the form that prompts take: the transcript, or the speech tokens `[tokens, llm_dim]`."""
        kept = sample.utterance, self.checkpoint.llm.dtype  # the dtype too, because a model may also run in float32
        if kept not in self._kept:
            while len(self._kept) >= _SOURCES_KEPT:
                del self._kept[next(iter(self._kept))]
            source = read_source(self.checkpoint, sample)
            if self.checkpoint.source == "speech":
                source = self.checkpoint.encode_speech(source)
                if not source.isfinite().all():
                    raise InputError("its speech tokens are not finite")
            self._kept[kept] = source
        return self._kept[kept]
