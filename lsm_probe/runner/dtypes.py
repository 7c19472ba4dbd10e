"""Half precision, and the warning if compared results have different dtypes; does not need numpy or torch."""

from __future__ import annotations

from collections.abc import Mapping


def is_half(dtype: str) -> bool:
    """Whether a dtype, by its name in torch, is a half precision."""
    return dtype in ("float16", "bfloat16")


def dtype_warning(dtypes: Mapping[str, str]) -> str | None:
    """Why results in different dtypes should not be compared directly; None if all have one dtype or none is half.

    Args:
        dtypes: the dtype of each result, by the result's name.
    """
    if len(set(dtypes.values())) < 2 or not any(map(is_half, dtypes.values())):
        return None
    named = ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
    return (
        f"dtypes differ ({named}), and the error of half precision may be as large as the difference between the "
        "results: measure all with --dtype float32, or compare the difference with the error that --verify-precision "
        "reports"
    )
