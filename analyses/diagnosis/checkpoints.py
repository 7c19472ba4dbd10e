"""Load the measurements of checkpoints with known verdict, from the study's archive and from `measure.py`."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.task import Task, read_task
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.knockout.result import KnockoutResult
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.reports.collection import read_results
from lsm_probe.reports.verdicts import measured_checkpoints
from lsm_probe.runner.result import MeasurementResult

STUDY = Path(__file__).parents[1] / "speech_anchor_bias"
sys.path.insert(0, str(STUDY))
from measured import ARMS, LLM, at_length, only, results, seeds  # noqa: E402

Result = TypeVar("Result", bound=MeasurementResult)

# Data of the archive -> folders: sensitivity on own and on the LLM's responses, transcription, attention, knockout.
ARCHIVE = {
    "commands": ("own-words", "sensitivity", "evaluation", "attention", "knockout"),
    "voices": ("voices-own-words", None, "voices-evaluation", None, None),
    "natural": ("natural-own-words", None, None, None, None),
}


FORMS = ("french", "german", "politeness", "question", "sentiment", "spanish")
"""Tasks of `builtin:commands` that ask for a form."""


@cache
def tasks() -> dict[str, Task]:
    """The tasks that ask for a form, by name."""
    return {name: read_task(name) for name in FORMS}


def of_archive() -> Iterator[tuple[str, str, MeasuredCheckpoint]]:
    """Data, arm and measurements of each checkpoint of the study, in both seeds."""
    for data, parts in ARCHIVE.items():
        for seed in seeds():
            for arm in (LLM, *ARMS):
                if arm == LLM and seed != seeds()[0]:
                    continue  # the same model on the same data
                yield data, arm, _of_archive(data, parts, seed, arm)


def _of_archive(data: str, parts: tuple[str | None, ...], seed: str, arm: str) -> MeasuredCheckpoint:
    own, base_words, evaluation, attention, knockout = (
        None if part is None else results() / seed / part for part in parts
    )
    folder = "builtin-llm" if arm == LLM else f"{arm}-{seed}"
    assert own is not None
    speech = arm != LLM
    transcription = None
    if speech and evaluation is not None:
        transcription = only(EvaluationResult.load(evaluation / folder), ("commands-transcription",))
    return MeasuredCheckpoint(
        name=arm if arm == LLM else folder,
        source="speech" if speech else "text",
        own=SensitivityResult.load(own / folder),
        base_own=SensitivityResult.load(own / "builtin-llm") if speech else None,
        base_words=SensitivityResult.load(base_words / folder) if base_words and speech else None,
        attention=AttentionResult.load(attention / folder) if attention else None,
        control=at_length(seed, "attention") if attention and speech else None,
        knockout=KnockoutResult.load(knockout / folder) if knockout else None,
        transcription=transcription,
        tasks=tasks(),
    )


def of_open_study() -> Iterator[tuple[str, MeasuredCheckpoint]]:
    """Arm and measurements of each checkpoint of the study of open speech, in three seeds."""
    with TemporaryDirectory() as folder:
        with tarfile.open(STUDY.parent / "open_speech" / "arms.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        for measured in measured_checkpoints(read_results([Path(folder)]), LLM):
            yield measured.name.rsplit("-", 1)[0], measured


def measured_here(folder: Path) -> Iterator[tuple[str, str, MeasuredCheckpoint]]:
    """Data, name and measurements of each checkpoint that `measure.py` has measured."""
    for own in sorted(folder.glob("*/*/own-words/result.json")):
        home = own.parents[1]
        data, name = home.parent.name, home.name.replace("builtin-", "builtin:")
        is_text = name in (LLM, "copies-the-text")
        base = home.parent / "builtin-llm" / "own-words"
        yield data, name, MeasuredCheckpoint(
            name=name,
            source="text" if is_text else "speech",
            own=_load(SensitivityResult, home / "own-words"),
            base_own=None if name == LLM else _load(SensitivityResult, base),
            base_words=_load(SensitivityResult, home / "base-words"),
            transcription=None if is_text else _load(EvaluationResult, home / "transcription"),
            tasks=tasks(),
        )  # fmt: skip


def draw(measured: MeasuredCheckpoint, n: int, rng: np.random.Generator) -> MeasuredCheckpoint:
    """Draw a random subset of `n` utterances, without supporting measurements.

    In the archive, transcription uses other sentences, so the same number of them is drawn separately.
    """
    assert measured.own is not None
    own = _some(measured.own, n, rng)
    ids = set(own.ids)
    base = measured.base_own
    return MeasuredCheckpoint(
        name=measured.name,
        source=measured.source,
        own=own,
        base_own=None if base is None else base.subset([each for each in base.ids if each in ids]),
        transcription=None if measured.transcription is None else _some(measured.transcription, n, rng),
        tasks=measured.tasks,
    )


def _some(result: Result, n: int, rng: np.random.Generator) -> Result:
    kept = rng.choice(np.unique(result.clusters), n, replace=False)
    return result.subset([each for each, cluster in zip(result.ids, result.clusters, strict=True) if cluster in kept])


def _load(kind: type[Result], folder: Path) -> Result | None:
    return kind.load(folder) if (folder / "result.json").exists() else None
