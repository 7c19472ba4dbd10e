"""Synthetic English speech with the one voice that the hibari-tts wheel contains."""

from functools import lru_cache
from typing import Any

import numpy as np

from lsm_probe.errors import InputError
from lsm_probe.extras import install_command


def speak(text: str, *, seed: int = 0, speed: float = 1.0) -> tuple[np.ndarray, int]:
    """Speaks English text.

    Args:
        text: one or more sentences.
        seed: seed of the noise in the voice; the same text, seed and speed give the same samples.
        speed: 1.0 is the voice's own pace, 2.0 twice as fast.

    Returns:
        The samples, float32 mono [n_samples] with full scale at 1, and their rate in Hz (24,000).

    Raises:
        InputError: hibari-tts is not installed, or no part of the text can be spoken.
    """
    voice = _voice()
    samples = np.asarray(voice(text, speed=speed, seed=seed), dtype=np.float32)
    if not samples.size:
        raise InputError(f"nothing to speak in {text!r}: give English words")
    return samples, int(voice.sample_rate)


@lru_cache(maxsize=1)
def _voice() -> Any:
    try:
        from hibari import Hibari
    except ImportError as error:
        raise InputError(
            f"speech synthesis needs hibari-tts, which is not installed: {install_command('speech')}"
        ) from error
    # The package contains "heart"; other voices would be downloaded. One thread keeps the order of sums fixed.
    return Hibari(voice="heart", threads=1)
