"""The other instructions and the other sources that a sample's response is held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np

from lsm_probe.data.pools import Pool, Task
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.probes.subjects import read_source

_SOURCES_KEPT = 512
"""Encoded sources kept in memory: 30 speech tokens of 4,096 numbers each are 0.5 MB."""


def pool_of(samples: Sequence[Sample]) -> Pool:
    """The instructions the samples carry themselves, by task; each its own task where samples name none."""
    wordings: dict[str, dict[str, None]] = {}
    for sample in samples:
        wordings.setdefault(sample.task or sample.instruction, {})[sample.instruction] = None
    return Pool(tuple(Task(task=task, instructions=list(found)) for task, found in wordings.items()))


def other_instructions(sample: Sample, pool: Pool, kind: Literal["tasks", "paraphrases"]) -> list[str]:
    """What the pool holds beside the sample's own instruction.

    Args:
        sample: it names its task, or is found in the pool by its words.
        pool: tasks and their wordings; the first wording and the first language of each stand for a task.
        kind: `tasks`, one instruction for each other task; `paraphrases`, the other wordings of the sample's own.

    Raises:
        InputError: nothing is left to compare with.
    """
    own = sample.instruction.strip()
    filled = {task.task: _wordings(task) for task in pool.tasks}
    mine = [name for name, words in filled.items() if name == sample.task or own in words]
    if kind == "paraphrases":
        others = [words for name in mine for words in filled[name] if words != own]
    else:
        others = [words[0] for name, words in filled.items() if name not in mine]
    if not others:
        raise InputError(
            f"sample {sample.id}: the pool holds no {'other wording of its task' if mine else 'wording of its task'}: "
            "give one with several wordings to --instructions"
            if kind == "paraphrases"
            else f"sample {sample.id}: a pool of one instruction says nothing: give one with other tasks to "
            "--instructions, such as `probing`"
        )
    return others


def _wordings(task: Task) -> list[str]:
    language = task.languages[0] if task.languages else None
    return [task.fill(number, language).strip() for number in range(len(task.instructions))]


class OtherSources:
    """Draws, for each sample, sources of other utterances; each is read and encoded once.

    Every sample gets those that follow its own utterance in one shuffled circle of all, so that each is drawn equally
    often. An utterance of the same words is none other.

    Args:
        checkpoint: encodes the speech.
        samples: all samples.
        seed: of the shuffle.
        on_error: `skip` passes over a source that cannot be read.
    """

    def __init__(self, checkpoint: Checkpoint, samples: Sequence[Sample], seed: int, on_error: str):
        self.checkpoint, self.on_error = checkpoint, on_error
        distinct = list({sample.utterance: sample for sample in samples}.values())
        self.circle = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
        self.place = {sample.utterance: i for i, sample in enumerate(self.circle)}
        self._kept: dict[str, Any] = {}

    def draw(self, sample: Sample, number: int) -> list[Any]:
        """The sources of `number` other utterances, or of all if there are fewer: transcripts or speech tokens.

        Raises:
            InputError: there is no other utterance.
        """
        found = list(islice(self._usable(sample), number))
        if not found:
            raise InputError(
                f"sample {sample.id}: no other sample speaks of another utterance, and a pool of one source says "
                "nothing: give more samples"
            )
        return found

    def _usable(self, sample: Sample) -> Iterator[Any]:
        start = self.place[sample.utterance]
        for other in (*self.circle[start + 1 :], *self.circle[:start]):
            if sample.text is not None and sample.text == other.text:
                continue
            try:
                yield self.read(other)
            except InputError:
                if self.on_error == "fail":
                    raise

    def read(self, sample: Sample) -> Any:
        """A sample's source as prompts take it: the transcript, or the speech tokens `[tokens, llm_dim]`."""
        if sample.utterance not in self._kept:
            while len(self._kept) >= _SOURCES_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[sample.utterance] = self._encode(sample)
        return self._kept[sample.utterance]

    def _encode(self, sample: Sample) -> Any:
        source = read_source(self.checkpoint, sample)
        return source if self.checkpoint.source == "text" else self.checkpoint.listen(source)
