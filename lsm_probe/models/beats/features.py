"""BEATs' input for a waveform: a Kaldi filter bank with fixed normalisation, and the number of resulting states."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from lsm_probe.errors import InputError
from lsm_probe.waveform import as_mono, check_scale, to_float32

RATE = 16_000
MEL_BINS = 128
PATCH = 16
"""Number of frames, and of mel bins, in one patch. A patch becomes one state."""

_FRAME, _HOP, _FFT = 400, 160, 512
"""Numbers of samples in a frame (25 ms), between two frame starts (10 ms), and in the Fourier transform."""
_MIN_SAMPLES = _FRAME + (PATCH - 1) * _HOP
_MEAN, _STD = 15.41663, 6.55582
"""Mean and standard deviation of log energies in BEATs' training data. The original divides by twice the deviation."""


def beats_features(waveform: ArrayLike) -> Tensor:
    """Computes the normalised log-mel features that BEATs reads (arXiv 2212.09058).

    A frame is 25 ms of the waveform at 16-bit scale, one every 10 ms. Its mean is subtracted, then come
    pre-emphasis (0.97), the Povey window, the power spectrum, 128 mel bins from 20 Hz to 8 kHz and the natural
    logarithm, as in Kaldi. An incomplete last frame is left out. All is computed in float64: computing in float32
    changes the bins of low energy, and states by up to 1e-3.

    Args:
        waveform: `[samples]` at 16 kHz, as [`lsm_probe.waveform.as_waveform`] takes it. Samples in float64 stay so.

    Returns:
        `[frames, 128]`, float32.

    Raises:
        InputError: the waveform is unusable (see `as_waveform`), or shorter than one patch (2800 samples, 0.175 s).

    Example:
        >>> beats_features(np.zeros(16000)).shape
        torch.Size([98, 128])
    """
    samples = as_mono(waveform, squeeze=False)
    if samples.dtype.kind != "f":
        samples = to_float32(samples)
    check_scale(samples)
    if len(samples) < _MIN_SAMPLES:
        raise InputError(
            f"the speech has {len(samples)} samples, and BEATs needs {_MIN_SAMPLES} ({_MIN_SAMPLES / RATE} s at "
            f"{RATE} Hz): give longer speech, or add silence"
        )
    log_energies = spectrogram(
        samples.astype(np.float64) * 2**15,
        window_function(_FRAME, "povey", periodic=False),
        _FRAME,
        _HOP,
        _FFT,
        power=2.0,
        center=False,
        preemphasis=0.97,
        remove_dc_offset=True,
        mel_filters=_mel_filters(),
        mel_floor=float(np.finfo(np.float32).eps),
        log_mel="log",
        dtype=np.dtype(np.float64),
    )
    return torch.from_numpy((log_energies.T - _MEAN) / (2 * _STD)).float()


def num_beats_states(num_samples: int) -> int:
    """States that BEATs makes of a waveform at 16 kHz: 8 for every 160 ms. Frames that fill no patch are left out."""
    return num_beats_frames(num_samples) // PATCH * (MEL_BINS // PATCH)


def num_beats_frames(num_samples: int) -> int:
    """Frames that [`beats_features`] makes of a waveform at 16 kHz."""
    return max((num_samples - _FRAME) // _HOP + 1, 0)


@cache
def _mel_filters() -> NDArray[Any]:
    with warnings.catch_warnings():
        # No frequency of the Fourier transform lies in the fourth filter: its energy is always at the floor.
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        return mel_filter_bank(
            _FFT // 2 + 1, MEL_BINS, 20, RATE / 2, RATE, mel_scale="kaldi", triangularize_in_mel_space=True
        )
