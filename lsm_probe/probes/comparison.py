"""Comparing checkpoints on the same samples: paired differences, and what forbids taking them bare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from lsm_probe.errors import InputError
from lsm_probe.probes.result import ProbeResult

SCHEMA = "lsm-probe/comparison/1"


def compare(results: Sequence[ProbeResult]) -> dict[str, Any]:
    """What `comparison.json` holds: for each pair, second minus first, on the samples both have.

    Raises:
        InputError: if two results come from another probe, other data or other conventions.
    """
    return {
        "schema": SCHEMA,
        "probe": results[0].PROBE,
        "conventions": results[0].conventions.to_dict(),
        "pairs": [_pair(first, second) for first, second in combinations(results, 2)],
    }


def _pair(first: ProbeResult, second: ProbeResult) -> dict[str, Any]:
    if type(first) is not type(second):
        raise InputError(f"{first.name} and {second.name} are results of different probes: no comparison")
    for what in ("sha256", "n_samples"):
        if first.data[what] != second.data[what]:
            raise InputError(f"{first.name} and {second.name} were probed on different data: they cannot be paired")
    if first.conventions != second.conventions:
        raise InputError(f"{first.name} and {second.name} are read under different conventions: no comparison")
    other = set(second.ids)
    shared = [sample for sample in first.ids if sample in other]
    if not shared:
        raise InputError(f"{first.name} and {second.name} have no measured sample in common: no comparison")
    # Paired: the same utterances are drawn for both.
    first, second = first.subset(shared), replace(second.subset(shared), seed=first.seed)
    about = {"first": first.name, "second": second.name, "n_samples": len(shared)}
    try:
        return {**about, **first.differences(second), "warning": first.warning(second)}
    except InputError as error:  # too few samples are shared: the results themselves stand
        return {**about, "warning": f"no differences: {error}"}
