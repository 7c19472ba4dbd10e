"""Check and convert waveforms, whether they come from a file or from Python."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lsm_probe.errors import InputError

MAX_PEAK = 10.0
"""Largest floating-point sample, where full scale is 1. In practice, decoders, resamplers and gain exceed full scale by
a factor of 4 at most. 16-bit integers with a peak of 10 or less would be nearly silent (-70 dB), so a larger peak
means that the samples are on an integer scale."""


def as_waveform(audio: ArrayLike) -> NDArray[np.float32]:
    """Checks a mono waveform and converts it to float32, where full scale is 1.

    Args:
        audio: `[samples]`, an array, a tensor or a list: floating-point numbers up to [`MAX_PEAK`], which are not
            changed; or integers of 8 (unsigned too), 16 or 32 bits, divided by the full scale of their type.

    Raises:
        InputError: there is no sample or more than one channel; a sample is NaN, infinite or far above 1; or the type
            does not tell the scale.

    Example:
        >>> as_waveform(np.array([0, 16384], dtype=np.int16))
        array([0. , 0.5], dtype=float32)
    """
    samples = as_mono(audio, squeeze=False)
    if samples.dtype.kind == "f":
        check_scale(samples)
    return to_float32(samples)


def as_mono(audio: ArrayLike, *, squeeze: bool = True) -> NDArray[Any]:
    """A mono waveform as an array `[samples]` of its own type.

    Args:
        audio: an array, a tensor or a list.
        squeeze: also take `[1, samples]` and `[samples, 1]`.

    Raises:
        InputError: there is no sample or more than one channel.
    """
    if hasattr(audio, "detach"):  # a tensor, perhaps in bfloat16, which numpy does not have
        tensor: Any = audio.detach().cpu()
        audio = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    samples: NDArray[Any] = np.asarray(audio)
    if squeeze and samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    if samples.ndim != 1 or not samples.size:
        raise InputError(f"the speech has shape {samples.shape}: give a mono waveform of at least one sample")
    return samples


def to_float32(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Samples as float32, where full scale is 1; floating-point numbers are taken as they are, unchecked.

    Raises:
        InputError: the type does not tell the scale.
    """
    if samples.dtype.newbyteorder("=") in (np.int8, np.int16, np.int32):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    if samples.dtype == np.uint8:
        return ((samples - 128.0) / 128).astype(np.float32)
    if samples.dtype.kind != "f":
        raise InputError(
            f"the speech has type {samples.dtype}, which does not tell its scale: give floating-point numbers within "
            "-1 and 1, or int16"
        )
    return samples.astype(np.float32, copy=False)


def check_scale(samples: NDArray[np.floating[Any]]) -> None:
    """Refuses floating-point samples, of any number of channels, that are not finite or far beyond full scale.

    Raises:
        InputError: names the scale that the samples seem to have.
    """
    peak = float(np.abs(samples).max(initial=0))
    if not np.isfinite(peak):
        raise InputError("the speech holds NaN or infinite samples; replace or repair it")
    if peak > MAX_PEAK:
        advice = "bring them within -1 and 1"
        for name, full in (("32-bit", 2**31), ("24-bit", 2**23), ("16-bit", 2**15)):
            if peak <= 1.5 * full:  # which leaves room for overshoot
                advice = f"they look like {name} integers: divide them by {full}, or store them as integers"
        raise InputError(f"the speech has samples up to {peak:.6g}, and full scale is 1; {advice}")
