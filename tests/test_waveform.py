"""Waveforms from Python: integers are scaled by their type, other scales and bad samples are refused."""

import numpy as np
import pytest

from lsm_probe.errors import InputError
from lsm_probe.waveform import MAX_PEAK, as_waveform


@pytest.mark.parametrize(
    ("samples", "dtype"),
    [
        ([-128, 0, 64], np.int8),
        ([0, 128, 192], np.uint8),
        ([-(2**15), 0, 2**14], np.int16),
        ([-(2**31), 0, 2**30], np.int32),
    ],
)
def test_integers_are_scaled_by_their_type(samples: list[int], dtype: type) -> None:
    waveform = as_waveform(np.array(samples, dtype))
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, [-1, 0, 0.5])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_taken_as_they_are(dtype: type) -> None:
    given = np.array([-1.5, 0.25, MAX_PEAK], dtype)
    waveform = as_waveform(given)
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, given)


def test_float32_is_not_copied() -> None:
    given = np.zeros(9, np.float32)
    assert as_waveform(given) is given


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0, -28_000.0]), "samples up to 28000, and full scale is 1; they look like 16-bit integers"),
        (np.array([0, 1e300]), "bring them within -1 and 1"),
        (np.array([0, np.nan], np.float32), "NaN or infinite"),
        (np.array([0, -np.inf]), "NaN or infinite"),
        (np.array([0, 28_000]), "has type int64, which does not tell its scale"),
        (np.array([True]), "has type bool"),
        (np.array([1j]), "has type complex128"),
        (np.zeros((2, 9)), r"shape \(2, 9\): give a mono waveform"),
        (np.zeros(0), r"shape \(0,\)"),
        (0.5, r"shape \(\)"),
    ],
)
def test_invalid_waveforms_are_refused(samples: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_waveform(samples)  # type: ignore[arg-type]
