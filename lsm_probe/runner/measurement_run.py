"""The loop over batches that every measurement shares: progress, memory, and samples that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.manifest import describe_data
from lsm_probe.data.sample import Sample
from lsm_probe.distributed import RankShare, all_gather_or_raise, is_distributed, on_all_ranks
from lsm_probe.errors import InputError, NotMeasurable, SampleFault
from lsm_probe.hardware import exact_float32
from lsm_probe.intervals import number_clusters
from lsm_probe.memory import run_in_halves
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.precision import check_can_verify, in_float32
from lsm_probe.models.thinking import UNFINISHED
from lsm_probe.progress import notebook_progress
from lsm_probe.runner.exclusions import EMPTY, NO_THINKING
from lsm_probe.runner.identity import CheckpointIdentity, Control
from lsm_probe.runner.options import ResponseOptions, RunOptions, steps
from lsm_probe.runner.precision import PrecisionCheck
from lsm_probe.runner.prepared_samples import (
    PreparedSample,
    check_samples,
    describe_checkpoint,
    prepare,
)
from lsm_probe.runner.progress import Progress, Record
from lsm_probe.runner.result import package_versions

_NOTHING_WRONG = (EMPTY, NO_THINKING, UNFINISHED, "zero norms")
"""Reasons to leave out a sample that are not errors."""
_RESPONSE = "float32_response"
"""Name of the array that holds the response generated in float32."""


@dataclass(frozen=True)
class Unusable:
    """Why a sample gave no numbers; a `fault` stops the run unless `on_error` is `skip`."""

    reason: str
    fault: bool = False


Measured = dict[str, np.ndarray] | Unusable
MeasureBatch = Callable[[Sequence[PreparedSample]], Sequence[Measured]]
"""A function that computes the arrays of each prepared sample of a batch."""


@dataclass(frozen=True, kw_only=True)
class MeasurementRun:
    """One measurement of one checkpoint on all samples: batches, progress, memory, samples that cannot be used.

    Attributes:
        checkpoint: the checkpoint, in evaluation mode.
        samples: the samples it is measured on.
        responses: options of the responses; None for a measurement of prompts alone.
        options: options of the run.
        settings: everything else that affects the stored numbers, such as the measurement's own options. An interrupted
            run continues only with the same settings.
        source_lengths: number of source tokens by sample id, for a length-matched control.
        control: the description of that control.
        needs: keys that samples must have in addition to those for prompt and response.

    Raises:
        InputError: the checkpoint is in training mode, samples lack what is needed, or the precision check does not
            apply to the checkpoint.
    """

    checkpoint: Checkpoint
    samples: Sequence[Sample]
    responses: ResponseOptions | None
    options: RunOptions
    settings: Mapping[str, Any]
    source_lengths: Mapping[str, int] | None = None
    control: Control | None = None
    needs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.checkpoint.model.training:
            raise InputError(f"{self.checkpoint.name} is in training mode (dropout would be measured): call .eval()")
        check_samples(
            self.checkpoint, self.samples, self.responses, source_lengths=self.source_lengths, needs=self.needs
        )
        if self.options.verify_precision:
            check_can_verify(self.checkpoint.model, self.checkpoint.name)

    @on_all_ranks()
    def run(self, measure: MeasureBatch) -> tuple[list[Record], dict[str, Any]]:
        """Measure all samples. Under `torchrun` every process must call it: each measures its share of the batches.

        Batches are the same as in a single process, and all processes return the same records, in the order of the
        samples.

        Args:
            measure: computes the arrays of each prepared sample of a batch.

        Returns:
            The records of the measured samples, and the part of the result that all measurements share: `clusters`,
            `samples`, `checkpoint`, `data`, `excluded`, `seed` and `precision`.

        Raises:
            InputError: a sample cannot be used, under `on_error="fail"`, or none is left. Raised in all processes.
        """
        with self._progress() as on_progress, exact_float32():
            return self._measure_all(measure, on_progress)

    @contextmanager
    def _progress(self) -> Iterator[Callable[[int], None]]:
        if self.options.on_progress is not None:
            yield self.options.on_progress
            return
        total = steps(len(self.samples), self.options.verify_precision)
        with notebook_progress() as show:
            show(self.checkpoint.name, 0, total)
            yield lambda done: show(self.checkpoint.name, done, total)

    def _measure_all(
        self, measure: MeasureBatch, on_progress: Callable[[int], None]
    ) -> tuple[list[Record], dict[str, Any]]:
        identity = describe_checkpoint(self.checkpoint, self.responses, self.control)
        data = self.options.data or describe_data(self.samples)
        if self.options.verify_precision:
            with in_float32(self.checkpoint.model, self.checkpoint.name):
                pass  # checks before the measurement that it fits into memory
        records = self._measure_batches(measure, on_progress, self._stamp(identity, data))
        used = [record for record in records if record.excluded is None]
        return used, {
            "clusters": number_clusters([record.utterance for record in used]),
            "samples": [record.sample for record in used],
            "checkpoint": identity,
            "data": data,
            "excluded": _excluded(records),
            "seed": self.options.seed,
            "precision": self._verify(used[: self.options.verify_precision], data, measure, on_progress),
        }

    def _measure_batches(
        self, measure: MeasureBatch, on_progress: Callable[[int], None], stamp: dict[str, Any]
    ) -> list[Record]:
        """The records of all samples, including those that were left out."""
        size = self.options.batch_size
        progress = Progress(self.options.progress_folder, stamp)
        share = RankShare(range(0, len(self.samples), size))
        own: dict[int, list[Record]] = {}
        for first in share:
            batch = self.samples[first : first + size]
            stored = progress.get(first)
            if stored is None or self._stops_at(stored):
                stored = progress.put(first, self._run(batch, measure))
            own[first] = stored
            on_progress(share.done(len(stored)))
        all_batches = {first: records for part in all_gather_or_raise(own) for first, records in part.items()}
        records = [record for first in sorted(all_batches) for record in all_batches[first]]
        if is_distributed():
            on_progress(len(records))  # the last batches of the other processes were not counted yet
        return records

    def _verify(
        self, chosen: Sequence[Record], data: DataIdentity, measure: MeasureBatch, on_progress: Callable[[int], None]
    ) -> PrecisionCheck | None:
        """The numbers of some samples with the same weights in float32."""
        if not chosen:
            return None
        ids, responses = {record.sample["id"] for record in chosen}, self.responses
        generates = responses is not None and responses.response == "generated" and responses.responses is None
        if responses is not None:
            given = {record.sample["id"]: record.sample["response_ids"] for record in chosen}
            responses = replace(responses, responses=given, generated=None)
        below = self.options.progress_folder
        options = replace(self.options, verify_precision=0, progress_folder=below and below / "float32")
        samples = [sample for sample in self.samples if sample.id in ids]
        with in_float32(self.checkpoint.model, self.checkpoint.name):
            run = replace(self, samples=samples, responses=responses, options=options)
            stamp = run._stamp(describe_checkpoint(self.checkpoint, responses, self.control), data)
            records = run._measure_batches(
                run._generating(measure) if generates else measure,
                lambda done: on_progress(len(self.samples) + done),
                stamp,
            )
        on_progress(steps(len(self.samples), self.options.verify_precision))  # fewer samples may have been left
        check = _check(records)
        if not generates:
            return check
        own = {record.sample["id"]: record.arrays[_RESPONSE].tolist() for record in records if record.excluded is None}
        return replace(check, changed=[sample for sample in check.ids if own[sample] != given[sample]])

    def _generating(self, measure: MeasureBatch) -> MeasureBatch:
        """Also generates a response to each sample, which is not the one that is measured."""
        assert self.responses is not None
        longest = self.responses.max_new_tokens

        def measure_and_generate(items: Sequence[PreparedSample]) -> list[Measured]:
            found = measure(items)
            generated = self.checkpoint.generate([item.embedded for item in items], max_new_tokens=longest)
            return [
                own if isinstance(own, Unusable) else {**own, _RESPONSE: np.array(ids, dtype=np.int64)}
                for own, ids in zip(found, generated, strict=True)
            ]

        return measure_and_generate

    def _stamp(self, identity: CheckpointIdentity, data: DataIdentity) -> dict[str, Any]:
        """Everything that affects the numbers of a batch."""
        return {
            "checkpoint": identity.to_dict(),
            "data": data.to_dict(),
            "responses": None if self.responses is None else vars(self.responses),
            "source_lengths": self.source_lengths,
            "settings": dict(self.settings),
            "batch_size": self.options.batch_size,
            "versions": package_versions(),
        }

    def _run(self, batch: Sequence[Sample], measure: MeasureBatch) -> list[Record]:
        def does_not_fit(sample: Sample, error: Exception) -> Record:
            if self.options.on_error == "skip":
                return Record({"id": sample.id}, sample.utterance, {}, "does not fit into memory")
            raise InputError(f"sample {sample.id} alone does not fit into memory: shorten it") from error

        try:
            return run_in_halves(lambda part: self._run_batch(part, measure), batch, does_not_fit)
        except SampleFault as fault:
            if len(batch) > 1:  # find out which sample it is
                half = len(batch) // 2
                return [*self._run(batch[:half], measure), *self._run(batch[half:], measure)]
            if self.options.on_error == "fail":
                raise InputError(f"sample {batch[0].id}: {fault}") from fault
            return [Record({"id": batch[0].id}, batch[0].utterance, {}, str(fault))]

    def _stops_at(self, records: Sequence[Record]) -> bool:
        """Whether an earlier run skipped faulty samples among these, but this run must stop at them."""
        left_out = {record.excluded for record in records} - {None, *_NOTHING_WRONG}
        return self.options.on_error == "fail" and bool(left_out)

    def _run_batch(self, batch: Sequence[Sample], measure: MeasureBatch) -> list[Record]:
        items, left_out = prepare(self.checkpoint, batch, self.responses, self.options.on_error, self.source_lengths)
        if self.responses is not None:
            left_out |= {s.sample.id: s.reason_unmeasured for s in items if s.reason_unmeasured is not None}
        chosen = [item for item in items if item.sample.id not in left_out]
        found = measure(chosen) if chosen else []
        measured = {item.sample.id: own for item, own in zip(chosen, found, strict=True)}
        answered = {item.sample.id: item for item in items if item.response}
        measured |= {i: Unusable(reason) for i, reason in left_out.items()}
        return [self._record(sample, measured[sample.id], answered.get(sample.id)) for sample in batch]

    def _record(self, sample: Sample, measured: Measured, answered: PreparedSample | None) -> Record:
        row: dict[str, Any] = {"id": sample.id, "task": sample.task, "instruction": sample.instruction}
        if sample.text is not None:
            row["text"] = sample.text
        if answered is not None:
            row |= {"response": self.checkpoint.decode(answered.response), "response_ids": answered.response}
            if (thought := answered.thought) is not None:
                row |= {"thinking_tokens": thought.tokens, "answer": thought.answer}
        if not isinstance(measured, Unusable):
            arrays = {name: np.asarray(array) for name, array in measured.items()}
            return Record(row, sample.utterance, arrays)
        if measured.fault and self.options.on_error == "fail":
            raise InputError(f"sample {sample.id}: {measured.reason}")
        return Record(row, sample.utterance, {}, measured.reason)


def stack(records: Sequence[Record], *names: str) -> dict[str, Any]:
    """The arrays with these names, with samples as first axis. Shorter ones are padded with NaN (only floating
    point)."""
    return {name: _stack([record.arrays[name] for record in records]) for name in names}


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) == 1:
        return np.stack(arrays)
    filled = np.full((len(arrays), *np.max(shapes, axis=0)), np.nan, arrays[0].dtype)
    for row, array in zip(filled, arrays, strict=True):
        row[tuple(slice(n) for n in array.shape)] = array
    return filled


def _check(records: Sequence[Record]) -> PrecisionCheck:
    """The floating-point arrays from float32; counts do not change."""
    measured = [record for record in records if record.excluded is None]
    arrays = measured[0].arrays if measured else {}
    names = [name for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)]
    return PrecisionCheck([record.sample["id"] for record in measured], stack(measured, *names))


def _excluded(records: Sequence[Record]) -> dict[str, list[str]]:
    excluded: dict[str, list[str]] = {}
    for record in records:
        if record.excluded is not None:
            excluded.setdefault(record.excluded, []).append(record.sample["id"])
    if sum(map(len, excluded.values())) == len(records):
        reason, ids = next(iter(excluded.items()))
        raise NotMeasurable(f"no sample is left to measure; {len(ids)} of {len(records)} because: {reason}")
    return excluded
