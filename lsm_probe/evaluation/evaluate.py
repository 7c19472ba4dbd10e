"""Evaluation: prompts a checkpoint with tasks, stores its responses, and scores them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from lsm_probe.data.audio import check_audio_file
from lsm_probe.data.manifest import describe_data
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.evaluation.evaluation_result import EvaluationConventions, EvaluationResult
from lsm_probe.evaluation.scoring import check
from lsm_probe.evaluation.task import Task
from lsm_probe.intervals import number_clusters
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.runner.measurement_run import Measured, MeasurementRun
from lsm_probe.runner.options import MAX_NEW_TOKENS, ResponseOptions, RunKeywords, RunOptions
from lsm_probe.runner.prepared_samples import PreparedSample, prepare
from lsm_probe.runner.progress import Record


def evaluate(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    tasks: Sequence[Task],
    max_new_tokens: int = MAX_NEW_TOKENS,
    **options: Unpack[RunKeywords],
) -> EvaluationResult:
    """Generate greedy responses to the samples of tasks (up to 128 tokens, as in the paper) and score them.

    Samples run from the longest to the shortest, so that samples in a batch have similar lengths.

    Args:
        checkpoint: what [`lsm_probe.load`] returns, or a [`lsm_probe.evaluation.cascade.Cascade`].
        samples: with `target`, and `task` the name of one of `tasks`: as [`lsm_probe.read_tasks`] gives them.
        tasks: how their responses are parsed and scored.
        max_new_tokens: maximum length of a response, in tokens.
        options: options that all measurements share; see [`RunOptions`].

    Raises:
        InputError: a sample cannot be used (under `on_error="fail"`), has no target or one that its task cannot parse,
            or belongs to no task.
    """
    check(tasks, samples)
    ordered = _longest_first(samples, checkpoint)
    run = RunOptions(**options)
    run = replace(run, data=run.data or describe_data(samples))
    responses = ResponseOptions(max_new_tokens=max_new_tokens)
    measurement = MeasurementRun(
        checkpoint=checkpoint,
        samples=ordered,
        responses=responses,
        options=run,
        settings={"probe": EvaluationResult.NAME},
        needs=("target",),
    )
    # One-time work of a device at its first pass should not count in the speed.
    prepare(checkpoint, ordered[-1:], replace(responses, max_new_tokens=1), "skip")
    records, common = measurement.run(_measure)
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
        conventions=EvaluationConventions(max_new_tokens, tuple(tasks)),
    )


def _longest_first(samples: Sequence[Sample], checkpoint: Checkpoint) -> list[Sample]:
    """Sorted by the approximate number of tokens of their prompts."""

    def tokens(sample: Sample) -> float:
        source = len(sample.text or "") / 4
        if checkpoint.source == "speech" and sample.audio is not None:
            with suppress(InputError):  # the error is reported when the sample is read
                source = 10 * check_audio_file(sample.audio, sample.start, sample.duration)
        return len(sample.instruction) / 4 + source

    return sorted(samples, key=tokens, reverse=True)


def _measure(items: Sequence[PreparedSample]) -> list[Measured]:
    return [{"seconds": np.array(item.seconds), "transcript": np.array(_transcript(item))} for item in items]


def _transcript(item: PreparedSample) -> str:
    """The recogniser's transcript in a cascade; for a text LLM, the sample's own text."""
    return item.source if item.checkpoint.source != "text" and isinstance(item.source, str) else ""


def _row(record: Record, sample: Sample) -> dict[str, Any]:
    """A line of the predictions file: everything that scoring needs."""
    optional = {
        "alternatives": list(sample.alternatives),
        "transcript": str(record.arrays["transcript"]),
        "language": sample.language,
    }
    known = {key: value for key, value in optional.items() if value}
    return {**record.sample, "reference": sample.target, **known}
