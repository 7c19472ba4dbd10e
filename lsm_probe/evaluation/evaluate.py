"""Evaluation: puts tasks to a checkpoint, keeps what it answers, and scores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lsm_probe.bootstrap import number_clusters
from lsm_probe.data.audio import check_audio_file
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.evaluation.evaluation_result import EvaluationResult, Reading
from lsm_probe.evaluation.scoring import check
from lsm_probe.evaluation.task import Task
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.runner.measurement_run import BATCH_SIZE, Measured, MeasurementRun
from lsm_probe.runner.prepared_samples import MAX_NEW_TOKENS, PreparedSample, ResponseSource, describe_data, prepare
from lsm_probe.runner.record import Record


def evaluate(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    tasks: Sequence[Task],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_error: str = "fail",
    data: Mapping[str, Any] | None = None,
    progress_folder: Path | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> EvaluationResult:
    """Answers the samples of tasks greedily (as the paper, at most 128 tokens) and scores the answers.

    The samples are put to the checkpoint from the longest to the shortest, so that those of a batch are of a length.

    Args:
        checkpoint: what [`lsm_probe.load`] returns, or a [`lsm_probe.evaluation.cascade.Cascade`].
        samples: with `target`, and `task` the name of one of `tasks`: as [`lsm_probe.read_tasks`] gives them.
        tasks: how their responses are read and scored.
        max_new_tokens: longest response.
        batch_size: samples answered together; halved where memory runs out.
        seed: of the bootstrap.
        on_error: `fail` stops at a sample that cannot be used, `skip` leaves it out and counts it.
        data: identity of the data as stored with the result; by default what [`describe_data`] says of `samples`.
        progress_folder: where finished batches are kept, so that an interrupted run goes on from there.
        on_progress: called with the number of finished samples.

    Raises:
        InputError: a sample cannot be used (under `on_error="fail"`), has no target or one that its task cannot read,
            or is of no task.
    """
    check(tasks, samples)
    ordered = _longest_first(samples, checkpoint)
    response_source = MeasurementRun(
        checkpoint,
        ordered,
        ResponseSource("generated", max_new_tokens),
        settings={"probe": EvaluationResult.PROBE},
        batch_size=batch_size,
        on_error=on_error,
        data=data or describe_data(samples),
        progress_folder=progress_folder,
        on_progress=on_progress,
        needs=("target",),
    )
    # What a device does once, at its first pass, is no part of the speed.
    prepare(checkpoint, ordered[-1:], ResponseSource("generated", 1), "skip")
    records, common = response_source.run(_measure)
    record_of = {record.sample["id"]: record for record in records}
    answered = [sample for sample in samples if sample.id in record_of]
    in_order = [record_of[sample.id] for sample in answered]
    return EvaluationResult(
        **{
            **common,
            "samples": [_row(record, sample) for record, sample in zip(in_order, answered, strict=True)],
            "clusters": number_clusters([record.utterance for record in in_order]),
        },
        seconds=np.array([float(record.arrays["seconds"]) for record in in_order]),
        conventions=Reading(max_new_tokens, tuple(tasks)),
        seed=seed,
    )


def _longest_first(samples: Sequence[Sample], checkpoint: Checkpoint) -> list[Sample]:
    """By the rough number of tokens of their prompts."""

    def tokens(sample: Sample) -> float:
        source = len(sample.text or "") / 4
        if checkpoint.source == "speech" and sample.audio is not None:
            with suppress(InputError):  # it is told where the sample is read
                source = 10 * check_audio_file(sample.audio, sample.start, sample.duration)
        return len(sample.instruction) / 4 + source

    return sorted(samples, key=tokens, reverse=True)


def _measure(items: Sequence[PreparedSample]) -> list[Measured]:
    return [
        {
            "seconds": np.array(item.seconds),
            # A text LLM's source is the sample's own text, a cascade's what it has heard.
            "transcript": np.array("" if item.checkpoint.source == "text" else _transcript(item.source)),
        }
        for item in items
    ]


def _transcript(source: Any) -> str:
    return source if isinstance(source, str) else ""


def _row(record: Record, sample: Sample) -> dict[str, Any]:
    """A line of the predictions file: all that scoring needs."""
    row = {**record.sample, "reference": sample.target}
    if sample.alternatives:
        row["alternatives"] = list(sample.alternatives)
    if transcript := str(record.arrays["transcript"]):
        row["transcript"] = transcript
    if sample.language:
        row["language"] = sample.language
    return row
