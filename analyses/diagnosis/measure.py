"""Measure the built-in and the planted checkpoints for `calibrate.py`; skip existing results.

python analyses/diagnosis/measure.py runs/diagnosis [commands] [planted] [probe]

commands: the built-in checkpoints on `builtin:commands`. Each of the 24 utterances is used once, alternately with an
    instruction of a kind that `self_powered` was trained on and with another one. All 13 kinds of
    instruction are in the pool.
planted: the planted checkpoints and the text LLM on 8 of these utterances, with a smaller pool.
probe: the built-in checkpoints on 10 sentences of `builtin:probe`, which they cannot transcribe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

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
SOURCES, FEW, FEW_OTHERS = 8, 8, 10


def measure(out: Path, parts: Sequence[str]) -> None:
    """Writes `out/DATA/CHECKPOINT/own-words` and `transcription`."""
    pool = pool_of(_all_commands())
    few = commands()[:FEW]
    small = {**OPTIONS, "sources": 6, "instructions": pool_of(few)}
    if "commands" in parts:
        for name in BUILTIN:
            _measure(out / "commands", name, commands(), {**OPTIONS, "sources": SOURCES, "instructions": pool})
    if "planted" in parts:
        for name in (LLM, *ALONE, "copies-the-text"):
            _measure(out / "planted", name, few, small)
        for name in (LLM, *SILENT):
            _measure(out / "silence", name, silent(out / "clips", few), small)
    if "probe" in parts:
        other = lsm_probe.read_manifest("builtin:probe")[:FEW_OTHERS]
        for name in BUILTIN:
            _measure(out / "probe", name, other, {**OPTIONS, "sources": 6})


def commands() -> list[Sample]:
    """One sample per utterance."""
    return [_all_commands()[2 * i + i % 2] for i in range(len(_all_commands()) // 2)]


@cache
def _all_commands() -> list[Sample]:
    return lsm_probe.read_manifest("builtin:commands")


def silent(folder: Path, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with silent recordings of the same length."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for sample in samples:
        assert sample.audio is not None
        path = folder / f"{sample.audio.stem}.flac"
        if not path.exists():
            soundfile.write(path, np.zeros_like(read_audio(sample)), RATE)
        found.append(sample.model_copy(update={"audio": path}))
    return found


def _measure(folder: Path, name: str, samples: Sequence[Sample], options: dict[str, Any]) -> None:
    """Sensitivity on the checkpoint's own words, and the transcription of each utterance."""
    home = folder / name.replace(":", "-")
    checkpoint = None
    for part in ("own-words", "transcription"):
        if (home / part / "result.json").exists():
            continue
        if part == "transcription" and name in (LLM, "copies-the-text", "answers-nothing"):
            continue
        if checkpoint is None:
            checkpoint = planted(name) if not name.startswith("builtin:") else lsm_probe.load(name)
        print(home / part, flush=True)
        if part == "transcription":
            _transcribe(checkpoint, samples).save(home / part)
            continue
        given = {}
        if name == "answers-nothing":
            given["responses"] = {sample.id: checkpoint.eos_token_ids[:1] for sample in samples}
        lsm_probe.sensitivity(checkpoint, samples, **options, **given).save(home / part)


def _transcribe(checkpoint: Checkpoint, samples: Sequence[Sample]) -> lsm_probe.EvaluationResult:
    distinct = {sample.utterance: sample for sample in samples}.values()
    asked = [
        sample.model_copy(update={"instruction": TRANSCRIBE, "task": TRANSCRIPTION.name, "target": sample.text})
        for sample in distinct
    ]
    return lsm_probe.evaluate(checkpoint, asked, tasks=[TRANSCRIPTION], **OPTIONS)


if __name__ == "__main__":
    out, *parts = sys.argv[1:] or ["runs/diagnosis"]
    measure(Path(out), parts or ["commands", "planted", "probe"])
