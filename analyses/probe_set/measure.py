"""Measure the built-in probe set: length, level, silence, and word errors of Whisper tiny.en."""

import json
from typing import Any

import jiwer
import numpy as np
import soundfile
import torch
from make import RATE, TARGET
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from whisper_normalizer.english import EnglishTextNormalizer

from lsm_probe.assets import speech_encoder

FRAME = RATE // 100  # samples in 10 ms
QUIET = -50.0  # dB full scale; frames below this level count as silence


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
    normalise = EnglishTextNormalizer()
    wrong = total = 0
    levels = []
    for line in (TARGET / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        samples, rate = soundfile.read(TARGET / row["audio"], dtype="float32")
        assert rate == RATE
        assert samples.ndim == 1
        features = processor(samples, sampling_rate=rate, return_tensors="pt").input_features
        transcript = processor.batch_decode(model.generate(features), skip_special_tokens=True)[0]
        counts = jiwer.process_words(normalise(row["text"]), normalise(transcript))
        errors = counts.substitutions + counts.deletions + counts.insertions
        wrong, total = wrong + errors, total + counts.hits + counts.substitutions + counts.deletions
        levels.append(level(samples))
        print(row["id"], *(f"{name} {value:.2f}" for name, value in levels[-1].items()), sep="  ")
        if errors:
            print(f"    {errors} wrong: {row['text']!r} transcribed as {transcript.strip()!r}")
    for name in levels[0]:
        values = [one[name] for one in levels]
        print(f"{name}: {min(values):.2f} to {max(values):.2f}, mean {np.mean(values):.2f}")
    size = sum(path.stat().st_size for path in TARGET.iterdir())
    print(f"word errors: {wrong} of {total}; {len(levels)} files, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
