"""Text ability: MMLU and perplexity of text, for a text LLM and for the LLM inside an LSM.

The cost of speech training is the difference between two checkpoints, before and after. No speech is involved: models
that take speech get transcripts. MMLU runs in lm-evaluation-harness; perplexity is that of the `target` of each
sample, given its instruction and its transcript:

    exp(- sum over samples and tokens of log P(t_m | t_<m, s, i) / number of tokens)

without the end-of-response token, which is not text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.manifest import describe_data
from lsm_probe.data.sample import Sample, naming
from lsm_probe.distributed import RankShare, all_gather_or_raise, is_distributed, on_all_ranks
from lsm_probe.errors import InputError
from lsm_probe.evaluation.harness import Harness, check_tokenizer
from lsm_probe.evaluation.mmlu import LETTERS, Mmlu, write_mmlu_tasks
from lsm_probe.evaluation.text_ability_result import TextAbilityConventions, TextAbilityResult
from lsm_probe.instruments.scoring import NOT_FINITE, log_probabilities
from lsm_probe.intervals import number_clusters
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import encode_target
from lsm_probe.progress import notebook_progress
from lsm_probe.runner.measurement_run import Measured, MeasurementRun, Unusable, stack
from lsm_probe.runner.options import OnError, ResponseOptions, RunOptions, steps
from lsm_probe.runner.prepared_samples import PreparedSample, describe_checkpoint
from lsm_probe.runner.progress import Progress, Record
from lsm_probe.runner.result import package_versions

SHOTS = 5


class _Keywords(TypedDict, total=False):
    batch_size: int
    seed: int
    on_error: OnError
    verify_precision: int
    data: DataIdentity | None
    progress_folder: Path | None


def text_ability(
    checkpoint: Checkpoint,
    samples: Sequence[Sample] = (),
    *,
    mmlu: Mmlu | None = None,
    shots: int = SHOTS,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Unpack[_Keywords],
) -> TextAbilityResult:
    """Measure MMLU accuracy (per cent) and perplexity of text (nats per token), from questions, samples or both.

    Args:
        checkpoint: what [`lsm_probe.load`] returns.
        samples: with `text` and `target`.
        mmlu: questions from [`lsm_probe.read_mmlu`].
        shots: examples before each question of MMLU.
        on_progress: called with the number of finished samples and questions, and with the total; by default only
            notebooks show a bar.
        options: options that all measurements share; see [`RunOptions`].

    Raises:
        InputError: there is nothing to measure, a sample cannot be used (under `on_error="fail"`) or none is left, a
            subject has fewer examples than `shots`, lm-evaluation-harness is not installed or cannot take the
            tokenizer, or the model gives log-probabilities that are not finite.
    """
    if not samples and mmlu is None:
        raise InputError("nothing to measure: give samples (--data), MMLU (--mmlu), or both")
    if mmlu is not None:
        name, most = min(((name, len(each.dev)) for name, each in mmlu.subjects.items()), key=lambda found: found[1])
        if not 0 <= shots <= most:
            raise InputError(f"--shots {shots}: {mmlu.name} has {most} examples of {name}; give 0 to {most}")
        check_tokenizer(checkpoint)
    checkpoint = replace(checkpoint, source="text")
    records: list[Record] = []
    excluded: dict[str, list[str]] = {}
    parts: list[DataIdentity] = []
    run = RunOptions(**options)
    of_texts = steps(len(samples), run.verify_precision)
    total = of_texts + (mmlu.questions if mmlu is not None else 0)
    if run.verify_precision and not samples:
        raise InputError("--verify-precision needs samples (--data): the questions of MMLU are not run in float32")
    precision = None
    below = run.progress_folder
    with notebook_progress() as show:
        report = on_progress or (lambda done, total: show(checkpoint.name, done, total))
        if samples:
            parts.append(run.data or describe_data(samples))
            measurement = MeasurementRun(
                checkpoint=checkpoint,
                samples=samples,
                responses=_responses(checkpoint, samples),
                settings={},
                options=replace(
                    run,
                    progress_folder=below and below / "texts",
                    on_progress=lambda done: report(done, total),
                ),
            )
            records, common = measurement.run(_measure)
            excluded, precision = common["excluded"], common["precision"]
        if mmlu is not None:
            parts.append(mmlu.describe())
            of_mmlu = replace(run, progress_folder=below and below / "mmlu")
            answered = _answer_mmlu(checkpoint, mmlu, shots, of_mmlu, lambda done: report(of_texts + done, total))
            records = [*records, *answered]
    return TextAbilityResult(
        **stack(records, "counts"),
        clusters=number_clusters([record.utterance for record in records]),
        samples=[_without_thinking(record.sample) for record in records],
        checkpoint=describe_checkpoint(checkpoint, None),
        data=_joined(parts),
        conventions=TextAbilityConventions(shots=shots if mmlu is not None else None),
        excluded=excluded,
        seed=run.seed,
        precision=precision,
        versions=package_versions() | ({"lm-eval": version("lm-eval")} if mmlu is not None else {}),
    )


def _responses(checkpoint: Checkpoint, samples: Sequence[Sample]) -> ResponseOptions:
    """The targets as responses, without the end-of-response token."""
    without = [sample.id for sample in samples if sample.target is None]
    if without:
        raise InputError(
            f"{len(without)} of {len(samples)} samples have no `target`, whose perplexity is asked for (first: "
            f"{without[0]}): add it to the manifest"
        )
    tokens = {}
    for sample in samples:
        with naming(sample):
            tokens[sample.id] = encode_target(checkpoint.tokenizer, sample.target or "")
    return ResponseOptions(response="reference", responses=tokens)


def _measure(items: Sequence[PreparedSample]) -> list[Measured]:
    """Nats and tokens of each sample's target; summed over tokens in float64."""
    found = [log_probabilities(item.checkpoint.llm, [item.embedded], item.response)[0] for item in items]
    on_cpu = torch.cat(found).cpu().double()  # one copy for the batch, because a copy waits for the device
    return [_counts(own) for own in on_cpu.split(list(map(len, found)))]


def _counts(log_probs: Tensor) -> Measured:
    if not log_probs.isfinite().all():
        return Unusable(NOT_FINITE, fault=True)
    return {"counts": np.array([-log_probs.sum().item(), len(log_probs)])}


def _without_thinking(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a target without the fields for responses with thinking, because a target is scored as a whole."""
    if "thinking_tokens" not in row:
        return row
    return {key: value for key, value in row.items() if key not in ("thinking_tokens", "answer")}


@on_all_ranks()
def _answer_mmlu(
    checkpoint: Checkpoint, mmlu: Mmlu, shots: int, run: RunOptions, on_progress: Callable[[int], None]
) -> list[Record]:
    """A record for each question, in order. Each process answers a share of the subjects and returns all records."""
    progress = Progress(
        run.progress_folder,
        {
            "checkpoint": describe_checkpoint(checkpoint, None).to_dict(),
            "data": mmlu.describe().to_dict(),
            "shots": shots,
            "batch_size": run.batch_size,
            "versions": {**package_versions(), "lm-eval": version("lm-eval")},
        },
    )
    subjects = list(mmlu.subjects)
    own: dict[int, list[Record]] = {}
    with TemporaryDirectory() as folder:
        tasks = write_mmlu_tasks(mmlu, folder)
        harness = Harness(checkpoint, Path(folder), shots=shots, batch_size=run.batch_size)
        share = RankShare(range(len(tasks)))
        for i in share:
            group = mmlu.subjects[subjects[i]].group
            own[i] = progress.get(i) or progress.put(i, _records(subjects[i], group, harness.run(tasks[i])))
            on_progress(share.done(len(own[i])))
        found = {i: records for part in all_gather_or_raise(own) for i, records in part.items()}
    records = [record for i in sorted(found) for record in found[i]]
    if is_distributed():
        on_progress(len(records))  # this process does not yet know of the others' last subjects
    return records


def _records(subject: str, group: str, answered: Sequence[dict[str, Any]]) -> list[Record]:
    records = []
    for found in answered:
        question = f"mmlu/{subject}/{found['doc_id']}"
        row = {
            "id": question,
            "task": "mmlu",
            "subject": subject,
            "group": group,
            "answer": LETTERS[found["target"]],
            "chosen": LETTERS[found["chosen"]],
            "cut": found["cut"],
        }
        records.append(Record(row, question, {"counts": np.array([found["acc"], 1.0])}))
    return records


def _joined(parts: Sequence[DataIdentity]) -> DataIdentity:
    """The combined identity of the samples and the questions."""
    if len(parts) == 1:
        return parts[0]
    return DataIdentity(
        name=" + ".join(part.name for part in parts),
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
        n_samples=sum(part.n_samples for part in parts),
        parts=tuple(parts),
    )
