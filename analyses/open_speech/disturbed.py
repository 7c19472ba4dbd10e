"""The same clips with noise, or spoken faster or slower, to see whether the verdicts stay.

    python analyses/open_speech/disturbed.py asked/manifest.jsonl disturbed

Writes a manifest for each condition: white noise at 20, 10 and 5 dB below the clip's power, and the clip played at
0.8 and 1.25 times its speed, which also changes its pitch (as in speed perturbation, Ko et al. 2015).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]
"""Samples at 16 kHz."""


def main(manifest: Path, out: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for name, disturb in CONDITIONS.items():
        rng = np.random.default_rng(0)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for row in rows:
            wave, rate = soundfile.read(manifest.parent / row["audio"], dtype="float32")
            file = f"{row['id']}.flac"
            soundfile.write(folder / file, disturb(wave, rng), rate)
            lines.append(json.dumps({**row, "audio": file}))
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def noise(decibels: float) -> Callable[[Wave, np.random.Generator], Wave]:
    """Adds noise whose power is so many decibels below that of the clip."""

    def disturb(wave: Wave, rng: np.random.Generator) -> Wave:
        power = np.mean(wave**2) / 10 ** (decibels / 10)
        return np.clip(wave + rng.normal(0, np.sqrt(power), wave.shape), -1, 1).astype(np.float32)

    return disturb


def speed(factor: float) -> Callable[[Wave, np.random.Generator], Wave]:
    def disturb(wave: Wave, _: np.random.Generator) -> Wave:
        return np.clip(soxr.resample(wave, factor, 1), -1, 1)

    return disturb


CONDITIONS = {
    "noise-20dB": noise(20),
    "noise-10dB": noise(10),
    "noise-5dB": noise(5),
    "speed-0.8": speed(0.8),
    "speed-1.25": speed(1.25),
}

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
