"""Measures the built-in and the planted checkpoints for `calibrate.py`; what is there already is passed over.

python analyses/diagnosis/measure.py runs/diagnosis

Of `builtin:commands` each of the 24 utterances is used once: with an instruction of a kind that `self_powered` was
trained on and with another in turn. All 13 kinds of instruction are in the pool.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from planted import TRANSCRIBE, planted

import lsm_probe
from lsm_probe.data.audio import RATE, read_audio
from lsm_probe.data.sample import Sample
from lsm_probe.evaluation.task import Task
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.probes.sensitivity.counterfactuals import pool_of

LLM = "builtin:llm"
BUILTIN = (LLM, "builtin:self_powered", "builtin:vanilla_asr", "builtin:untrained")
ALONE = ("copies-the-speech", "constant-speech-tokens", "constant-answer", "random-llm", "answers-nothing")
SILENT = ("vanilla_asr-silence", "self_powered-silence")
TRANSCRIPTION = Task(name="transcription", title="Transcription", metrics=("word_error_rate",))
OPTIONS = {"max_new_tokens": 32, "batch_size": 16}
SOURCES, PLANTED_UTTERANCES = 8, 12


def measure(out: Path) -> None:
    """Writes `out/DATA/CHECKPOINT/own-words` and `transcription`."""
    # Those that the tables need most come first, so that an interrupted run is of use.
    for name in BUILTIN:
        _measure(out / "commands" / _folder(name), name, commands())
    for name in (*ALONE, "copies-the-text"):
        _measure(out / "commands" / name, name, commands()[:PLANTED_UTTERANCES])
    for name in SILENT:
        _measure(out / "silence" / name, name, silent(out / "clips")[:PLANTED_UTTERANCES])
    for name in BUILTIN:
        _measure(out / "probe" / _folder(name), name, lsm_probe.read_manifest("builtin:probe"))


def commands() -> list[Sample]:
    """One sample of each utterance."""
    return [_all_commands()[2 * i + i % 2] for i in range(len(_all_commands()) // 2)]


@cache
def _all_commands() -> list[Sample]:
    return lsm_probe.read_manifest("builtin:commands")


def silent(folder: Path) -> list[Sample]:
    """`builtin:commands` with recordings as long as before that hold nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for sample in commands():
        assert sample.audio is not None
        path = folder / f"{sample.audio.stem}.flac"
        if not path.exists():
            soundfile.write(path, np.zeros_like(read_audio(sample)), RATE)
        samples.append(sample.model_copy(update={"audio": path}))
    return samples


def _folder(name: str) -> str:
    return name.replace(":", "-")


def _measure(folder: Path, name: str, samples: Sequence[Sample]) -> None:
    """Sensitivity on the checkpoint's own words, and the transcription of each utterance."""
    checkpoint = None
    for part in ("own-words", "transcription"):
        if (folder / part / "result.json").exists():
            continue
        if part == "transcription" and name in (LLM, "copies-the-text", "answers-nothing"):
            continue
        if checkpoint is None:
            checkpoint = planted(name) if not name.startswith("builtin:") else lsm_probe.load(name)
        print(folder / part, flush=True)
        if part == "transcription":
            _transcribe(checkpoint, samples).save(folder / part)
            continue
        options = {**OPTIONS, "sources": SOURCES}
        if folder.parent.name != "probe":
            options["instructions"] = pool_of(_all_commands())
        if name == "answers-nothing":
            options["responses"] = {sample.id: checkpoint.eos_token_ids[:1] for sample in samples}
        lsm_probe.sensitivity(checkpoint, samples, **options).save(folder / part)


def _transcribe(checkpoint: Checkpoint, samples: Sequence[Sample]) -> lsm_probe.EvaluationResult:
    distinct = {sample.utterance: sample for sample in samples}.values()
    asked = [
        sample.model_copy(update={"instruction": TRANSCRIBE, "task": TRANSCRIPTION.name, "target": sample.text})
        for sample in distinct
    ]
    return lsm_probe.evaluate(checkpoint, asked, tasks=[TRANSCRIPTION], **OPTIONS)


if __name__ == "__main__":
    measure(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/diagnosis"))
