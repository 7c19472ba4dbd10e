"""The probe set in the package: complete, 16 kHz mono, audible, the instructions in turn."""

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lsm_probe.data.pools import Task, read_pool

DATA = Path(str(files("lsm_probe.data")))
FOLDER = DATA / "builtin_probe"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    lines = (FOLDER / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def probing() -> tuple[Task, ...]:
    return read_pool("probing").tasks


def test_five_probing_instructions_of_similar_length(probing: tuple[Task, ...]) -> None:
    assert [task.task for task in probing] == ["translation", "transcription", "summary", "keywords", "question"]
    assert all(len(task.instructions) == 1 for task in probing)
    assert all(10 <= len(task.instructions[0].split()) <= 16 for task in probing)


def test_enough_utterances_with_the_instructions_in_turn(rows: list[dict[str, Any]], probing: tuple[Task, ...]) -> None:
    assert len(rows) >= 24
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["text"] for row in rows}) == len(rows)
    for number, row in enumerate(rows):
        turn = probing[number % len(probing)]
        assert (row["task"], row["instruction"]) == (turn.task, turn.instructions[0])
    counts = Counter(row["task"] for row in rows)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_row_is_short_english_with_a_fitting_target(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["language"] == "en"
        assert 8 <= len(row["text"].split()) <= 16
        assert row["text"].isascii()
        assert not any(letter.isdigit() for letter in row["text"])
        chinese = any("\u4e00" <= letter <= "\u9fff" for letter in row["target"])
        assert chinese == (row["task"] == "translation")
        assert (row["target"] == row["text"]) == (row["task"] == "transcription")
        assert row["target"].endswith("?") == (row["task"] == "question")


def test_the_audio_exists_and_is_not_silent(rows: list[dict[str, Any]]) -> None:
    assert {row["audio"] for row in rows} == {path.name for path in FOLDER.glob("*.flac")}
    for row in rows:
        info = soundfile.info(FOLDER / row["audio"])
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        samples, _ = soundfile.read(FOLDER / row["audio"], dtype="float32")
        assert 2.0 < len(samples) / 16_000 < 8.0
        assert np.abs(samples).max() < 0.99
        assert np.sqrt((samples**2).mean()) > 0.02
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_500_000
