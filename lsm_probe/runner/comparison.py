"""Comparison of checkpoints on the same samples: paired differences, and warnings if they are misleading."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from lsm_probe.errors import InputError
from lsm_probe.intervals import METHOD
from lsm_probe.runner.dtypes import dtype_warning
from lsm_probe.runner.result import MeasurementResult, thinking_summary

SCHEMA = "lsm-probe/comparison/1"


def compare(results: Sequence[MeasurementResult]) -> dict[str, Any]:
    """Compare each pair of results: second minus first, on their common samples.

    Args:
        results: of one measurement, on the same data, under the same conventions.

    Returns:
        What `comparison.json` holds.

    Raises:
        InputError: two results are of different measurements, data or conventions.
    """
    return {
        "schema": SCHEMA,
        "probe": results[0].NAME,
        "conventions": results[0].conventions.to_dict(),
        "interval": METHOD,
        "pairs": [_pair(*pair, _controls(*pair, results)) for pair in combinations(results, 2)],
    }


def _controls(first: MeasurementResult, second: MeasurementResult, results: Sequence[MeasurementResult]) -> list[str]:
    """Names of the controls with the source lengths of either result. If some of them come from one of the two LLMs,
    only these are named."""
    others = [result for result in results if result.name not in (first.name, second.name)]
    found = {control.name: llm for result in (first, second) for llm, control in result.find_controls(others).items()}
    own = [name for name, llm in found.items() if llm in (first.name, second.name)]
    return own or list(found)


def _pair(first: MeasurementResult, second: MeasurementResult, controls: Sequence[str]) -> dict[str, Any]:
    if type(first) is not type(second):
        raise InputError(f"{first.name} and {second.name} are results of different probes: they cannot be compared")
    if not first.data.is_same_as(second.data):
        raise InputError(f"{first.name} and {second.name} were probed on different data: they cannot be paired")
    if first.conventions != second.conventions:
        raise InputError(f"{first.name} and {second.name} have different conventions: they cannot be compared")
    if first.checkpoint.response_part != second.checkpoint.response_part:
        raise InputError(
            f"{first.name} and {second.name} were measured on different parts of the response: they cannot be compared"
        )
    if not set(first.ids) & set(second.ids):
        raise InputError(f"{first.name} and {second.name} have no measured sample in common: they cannot be compared")
    first, second = first.paired_with(second)
    about = {"first": first.name, "second": second.name, "n_samples": len(first.ids)}
    try:
        dtypes = {result.name: result.checkpoint.dtype for result in (first, second)}
        warnings = filter(None, [first.warning(second, controls), _thinking(first, second), dtype_warning(dtypes)])
        return {**about, **first.differences(second), "warning": "; ".join(warnings) or None}
    except InputError as error:  # too few common samples; the results themselves are valid
        return {**about, "warning": f"not compared: {error}"}


def _thinking(first: MeasurementResult, second: MeasurementResult) -> str | None:
    """A warning that only one of two models thinks before it answers, because thinking tokens are measured too."""
    thinks = [thinking_summary(result.samples) is not None for result in (first, second)]
    if thinks[0] == thinks[1] or first.NAME == "evaluate" or first.checkpoint.response_part is not None:
        return None
    names = [first.name, second.name]
    return (
        f"{names[thinks.index(True)]} thinks before it answers and {names[thinks.index(False)]} does not; all tokens "
        "were measured: --response-part answer compares the answers"
    )
