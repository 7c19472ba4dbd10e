"""Properties of the speech itself: its words with their times, and its loudness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsm_probe.models.speech_times import FRAME_SECONDS, RATE


@dataclass(frozen=True)
class Word:
    """A word in the spelling of the transcript, with the begin and end of its speech in seconds."""

    text: str
    begin: float
    end: float


def loudness(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Root mean square of each 20 ms frame in dB below the loudest, `[frames]`; the last frame may be shorter."""
    frame = round(FRAME_SECONDS * RATE)
    firsts = np.arange(0, len(waveform), frame)
    squares = np.add.reduceat(waveform.astype(np.float64) ** 2, firsts)
    means = squares / np.minimum(frame, len(waveform) - firsts)
    return 10 * np.log10(np.maximum(means, 1e-12) / max(means.max(), 1e-12))
