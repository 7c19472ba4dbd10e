"""The round through all samples that every probe makes: batches, progress, memory, samples that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsm_probe.bootstrap import number_clusters
from lsm_probe.data.sample import Sample
from lsm_probe.distributed import RankShare, all_gather_or_raise, is_distributed, on_all_ranks
from lsm_probe.errors import InputError, SampleFault
from lsm_probe.memory import run_in_halves
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.thinking import UNFINISHED
from lsm_probe.runner.prepared_samples import (
    EMPTY,
    NO_THINKING,
    PreparedSample,
    ResponseSource,
    check_samples,
    describe_checkpoint,
    describe_data,
    prepare,
)
from lsm_probe.runner.progress import Progress
from lsm_probe.runner.record import Record
from lsm_probe.runner.result import package_versions

BATCH_SIZE = 8
_NOTHING_WRONG = (EMPTY, NO_THINKING, UNFINISHED, "zero norms")
"""Why a sample can be left out without anything being broken."""


@dataclass(frozen=True)
class Unusable:
    """Why a sample gave no numbers.

    Attributes:
        reason: what was the matter.
        fault: whether something is broken, so that the run stops unless samples are to be skipped.
    """

    reason: str
    fault: bool = False


Measured = dict[str, np.ndarray] | Unusable
MeasureBatch = Callable[[Sequence[PreparedSample]], Sequence[Measured]]
"""A probe's own part: the arrays of each item of a batch."""


@dataclass(frozen=True)
class MeasurementRun:
    """What is the same in every probe's round through the samples.

    Attributes:
        checkpoint, samples: who is measured on what.
        response_source: whose responses.
        settings: what else decides the stored numbers; a run resumes only under the same.
        batch_size: samples run together; halved where memory runs out.
        on_error: `fail` stops at a sample that cannot be used, `skip` leaves it out and counts it.
        data: identity of the data as stored with the result; by default what [`describe_data`] says of `samples`.
        progress_folder: where finished batches are kept, so that an interrupted run goes on from there.
        on_progress: called with the number of finished samples.
        needs: keys that samples must have beside those that prompt and response come from.
    """

    checkpoint: Checkpoint
    samples: Sequence[Sample]
    response_source: ResponseSource
    settings: Mapping[str, Any]
    batch_size: int
    on_error: str
    data: Mapping[str, Any] | None
    progress_folder: Path | None
    on_progress: Callable[[int], None]
    needs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.response_source.max_new_tokens < 1:
            raise InputError("batch_size and max_new_tokens are counts: give 1 or more")
        if self.on_error not in ("fail", "skip"):
            raise InputError(f"on_error {self.on_error!r} is unknown; choose one of: fail, skip")
        if self.checkpoint.model.training:
            raise InputError(f"{self.checkpoint.name} is in training mode (dropout would be measured): call .eval()")
        check_samples(self.checkpoint, self.samples, self.response_source, self.needs)

    @on_all_ranks()
    def run(self, measure: MeasureBatch) -> tuple[list[Record], dict[str, Any]]:
        """Measures all samples. Under `torchrun` every process must call it: each measures its share of the batches.

        Batches are what they are in a single process, and all processes return the same, in the samples' order.

        Returns:
            The records of those that were measured, and what every result is made of beside its own arrays:
            `clusters`, `samples`, `checkpoint`, `data` and `excluded`.

        Raises:
            InputError: a sample cannot be used, under `on_error="fail"`, or none is left; in all processes.
        """
        description = describe_checkpoint(self.checkpoint, self.response_source)
        data = dict(self.data or describe_data(self.samples))
        progress = Progress(
            self.progress_folder,
            {
                "checkpoint": description,
                "data": data,
                "settings": {**vars(self.response_source), **self.settings},
                "batch_size": self.batch_size,
                "versions": package_versions(),
            },
        )
        share = RankShare(range(0, len(self.samples), self.batch_size))
        own: dict[int, list[Record]] = {}
        for first in share:
            batch = self.samples[first : first + self.batch_size]
            stored = progress.get(first)
            if stored is None or self._stops_at(stored):
                stored = progress.put(first, self._run(batch, measure))
            own[first] = stored
            self.on_progress(share.done(len(stored)))
        all_batches = {first: records for part in all_gather_or_raise(own) for first, records in part.items()}
        records = [record for first in sorted(all_batches) for record in all_batches[first]]
        if is_distributed():
            self.on_progress(len(records))  # of the others' last batches nothing was heard yet
        used = [record for record in records if record.excluded is None]
        return used, {
            "clusters": number_clusters([record.utterance for record in used]),
            "samples": [record.sample for record in used],
            "checkpoint": description,
            "data": data,
            "excluded": _excluded(records),
        }

    def _run(self, batch: Sequence[Sample], measure: MeasureBatch) -> list[Record]:
        def alone(sample: Sample, error: RuntimeError) -> Record:
            if self.on_error == "skip":
                return Record({"id": sample.id}, sample.utterance, {}, "does not fit into memory")
            raise InputError(f"sample {sample.id} alone does not fit into memory: shorten it") from error

        try:
            return run_in_halves(lambda part: self._run_batch(part, measure), batch, alone)
        except SampleFault as fault:
            if len(batch) > 1:  # find the sample
                half = len(batch) // 2
                return [*self._run(batch[:half], measure), *self._run(batch[half:], measure)]
            if self.on_error == "fail":
                raise InputError(f"sample {batch[0].id}: {fault}") from fault
            return [Record({"id": batch[0].id}, batch[0].utterance, {}, str(fault))]

    def _stops_at(self, records: Sequence[Record]) -> bool:
        """Whether a run that went on past faulty samples left these, and this one is to stop at them."""
        left_out = {record.excluded for record in records} - {None, *_NOTHING_WRONG}
        return self.on_error == "fail" and bool(left_out)

    def _run_batch(self, batch: Sequence[Sample], measure: MeasureBatch) -> list[Record]:
        items, left_out = prepare(self.checkpoint, batch, self.response_source, self.on_error)
        if self.response_source.response != "none":
            left_out |= {s.sample.id: s.reason_unmeasured for s in items if s.reason_unmeasured is not None}
        chosen = [item for item in items if item.sample.id not in left_out]
        measured = dict(zip((s.sample.id for s in chosen), measure(chosen), strict=True)) if chosen else {}
        answered = {item.sample.id: item for item in items if item.response}
        return [
            self._record(
                sample, measured.get(sample.id, Unusable(left_out.get(sample.id, ""))), answered.get(sample.id)
            )
            for sample in batch
        ]

    def _record(self, sample: Sample, measured: Measured, answered: PreparedSample | None) -> Record:
        row: dict[str, Any] = {"id": sample.id, "task": sample.task, "instruction": sample.instruction}
        if sample.text is not None:
            row["text"] = sample.text
        if answered is not None:
            row |= {"response": self.checkpoint.decode(answered.response), "response_ids": answered.response}
            if (thought := answered.thought) is not None:
                row |= {"thinking_tokens": thought.tokens, "answer": thought.answer}
        if not isinstance(measured, Unusable):
            return Record(row, sample.utterance, measured)
        if measured.fault and self.on_error == "fail":
            raise InputError(f"sample {sample.id}: {measured.reason}")
        return Record(row, sample.utterance, {}, measured.reason)


def stack(records: Sequence[Record], *names: str) -> dict[str, Any]:
    """The arrays of these names, samples as first axis. Shorter ones are filled up with NaN (floating point alone)."""
    return {name: _stack([record.arrays[name] for record in records]) for name in names}


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {array.shape for array in arrays}
    if len(shapes) == 1:
        return np.stack(arrays)
    largest = np.max([array.shape for array in arrays], axis=0)
    filled = np.full((len(arrays), *largest), np.nan, arrays[0].dtype)
    for row, array in zip(filled, arrays, strict=True):
        row[tuple(slice(n) for n in array.shape)] = array
    return filled


def _excluded(records: Sequence[Record]) -> dict[str, list[str]]:
    excluded: dict[str, list[str]] = {}
    for record in records:
        if record.excluded is not None:
            excluded.setdefault(record.excluded, []).append(record.sample["id"])
    left_out = sum(len(ids) for ids in excluded.values())
    if left_out == len(records):
        reason, ids = next(iter(excluded.items()))
        raise InputError(f"no sample is left to measure; {len(ids)} of {len(records)} because: {reason}")
    return excluded
