"""The effect of half precision on a result, measured on some samples, and a one-line description of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lsm_probe.runner.dtypes import is_half

_STORED = "float32/"
"""Prefix of the names of stored arrays."""

Drift = Mapping[str, Mapping[str, float]]
"""Difference between half precision and float32, by name of a number. `mean` is the largest change of its mean over the
verified samples (over all layers, if it has layers); `sample` is the largest change in a single sample."""


@dataclass(frozen=True)
class PrecisionCheck:
    """The numbers of some samples of a result, with the same weights in float32.

    Attributes:
        ids: of these samples.
        arrays: the result's arrays of these samples, by name, on the same responses as in half precision.
        changed: ids of samples with a different greedy response in float32; None if no response was generated.
    """

    ids: list[str]
    arrays: dict[str, np.ndarray]
    changed: list[str] | None = None

    def to_arrays(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The arrays of the check for `arrays.npz`, for the result's arrays of these names."""
        return {_STORED + name: self.arrays[name] for name in names if name in self.arrays}

    @classmethod
    def from_stored(cls, summary: Mapping[str, Any] | None, arrays: dict[str, np.ndarray]) -> Self | None:
        """Removes the arrays of [`to_arrays`] from the stored arrays and reads them; None if precision was not
        verified."""
        names = [name for name in arrays if name.startswith(_STORED)]
        own = {name.removeprefix(_STORED): arrays.pop(name) for name in names}
        if summary is None or not summary["verified"]:
            return None
        return cls(list(summary["verified"]), own, summary["changed_responses"])


def largest_change(change: NDArray[Any]) -> dict[str, float]:
    """The entry of a [`Drift`] for the changes in single samples, `[samples, ...]`; NaN means that there is no
    number."""
    known = np.isfinite(change)
    means = np.where(known, change, 0).sum(0, dtype=np.float64) / known.sum(0).clip(1)
    return {"mean": float(np.abs(means).max()), "sample": float(np.abs(change[known]).max(initial=0))}


def summarise(dtype: str, check: PrecisionCheck | None, drift: Drift) -> dict[str, Any] | None:
    """The content of `result.json` under `precision`; None for a result in float32."""
    if not is_half(dtype):
        return None
    rounded = {name: {key: float(f"{value:.3g}") for key, value in changes.items()} for name, changes in drift.items()}
    verified, changed = ([], None) if check is None else (check.ids, check.changed)
    return {"dtype": dtype, "verified": verified, "changed_responses": changed, "drift": rounded}


def describe(
    dtype: str, quantised: str | None, check: PrecisionCheck | None, drift: Drift, verify: str = "--verify-precision"
) -> str | None:
    """One line on the numerical precision of a result; None for unquantised weights in float32.

    Args:
        dtype, quantised: of the checkpoint.
        check: the check of the precision; None if there was none.
        drift: the differences that it found.
        verify: the option that verifies this number, with its command if that is a different one.
    """
    parts = []
    if quantised is not None:
        parts.append(f"quantised weights ({quantised}): numbers hold for these, not for those before quantisation")
    if is_half(dtype) and check is None:
        parts.append(f"computed in {dtype}; not compared with float32 ({verify} 4 does so on 4 samples)")
    if is_half(dtype) and check is not None:
        parts.append(f"computed in {dtype}; compared with float32 on {_count(len(check.ids), 'sample')}")
        parts += [
            f"{name} differs by up to {changes['mean']:.2g} in the mean and {changes['sample']:.2g} in a sample"
            for name, changes in drift.items()
        ]
        if check.changed is not None:
            differ = "differs" if len(check.changed) == 1 else "differ"
            parts.append(f"{len(check.changed)} of {_count(len(check.ids), 'greedy response')} {differ}")
    return "; ".join(parts) or None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
