"""Listens to the built-in probe set by proxy: length, level, silence, and what Whisper tiny.en hears."""

import json
import re
from typing import Any

import numpy as np
import soundfile
import torch
from make import RATE, TARGET
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lsm_probe.assets import speech_encoder

FRAME = RATE // 100  # samples in 10 ms
QUIET = -50.0  # dB below full scale: a frame under this counts as silence


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation; numbers are left as they are."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def word_errors(reference: list[str], heard: list[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


def decibels(value: float) -> float:
    """Amplitude in dB relative to full scale."""
    return 20 * float(np.log10(max(value, 1e-6)))


def level(samples: np.ndarray) -> dict[str, float]:
    """Seconds, peak and RMS in dB full scale, and the longest silence in seconds (float samples in, [n])."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    loud = [decibels(float(np.sqrt((frame**2).mean()))) > QUIET for frame in frames]
    longest = max((len(run) for run in "".join("x" if is_loud else " " for is_loud in loud).split("x")), default=0)
    rms = float(np.sqrt((samples**2).mean()))
    return {
        "seconds": len(samples) / RATE,
        "peak": decibels(float(np.abs(samples).max())),
        "rms": decibels(rms),
        "longest silence": longest / 100,
    }


def main() -> None:
    folder = speech_encoder()
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor: Any = WhisperProcessor.from_pretrained(folder)
    wrong = total = 0
    levels = []
    for line in (TARGET / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        samples, rate = soundfile.read(TARGET / row["audio"], dtype="float32")
        assert rate == RATE
        assert samples.ndim == 1
        features = processor(samples, sampling_rate=rate, return_tensors="pt").input_features
        heard = processor.batch_decode(model.generate(features), skip_special_tokens=True)[0]
        errors = word_errors(words(row["text"]), words(heard))
        wrong, total = wrong + errors, total + len(words(row["text"]))
        levels.append(level(samples))
        print(row["id"], *(f"{name} {value:.2f}" for name, value in levels[-1].items()), sep="  ")
        if errors:
            print(f"    {errors} wrong: {row['text']!r} heard as {heard.strip()!r}")
    for name in levels[0]:
        values = [one[name] for one in levels]
        print(f"{name}: {min(values):.2f} to {max(values):.2f}, mean {np.mean(values):.2f}")
    size = sum(path.stat().st_size for path in TARGET.iterdir())
    print(f"word errors: {wrong} of {total}; {len(levels)} files, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
