"""Comparing checkpoints on the same samples: paired differences, and what forbids taking them bare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from lsm_probe.errors import InputError
from lsm_probe.probes.attention.controls import controls_for
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.runner.result import ProbeResult, thinking_summary

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
        "pairs": [_pair(*pair, _controls(*pair, results)) for pair in combinations(results, 2)],
    }


def _controls(first: ProbeResult, second: ProbeResult, results: Sequence[ProbeResult]) -> list[str]:
    """Names of the controls with the source lengths of either result; those made from one of the two LLMs if there are
    any, else all."""
    pair = (first, second)
    others = [r for r in results if isinstance(r, AttentionResult) and r.name not in (first.name, second.name)]
    served = [controls_for(others, r) for r in pair if isinstance(r, AttentionResult)]
    found = {control.name: llm for controls in served for llm, control in controls.items()}
    own = [name for name, llm in found.items() if llm in (first.name, second.name)]
    return own or list(found)


def _pair(first: ProbeResult, second: ProbeResult, controls: Sequence[str]) -> dict[str, Any]:
    if type(first) is not type(second):
        raise InputError(f"{first.name} and {second.name} are results of different probes: no comparison")
    for what in ("sha256", "n_samples"):
        if first.data[what] != second.data[what]:
            raise InputError(f"{first.name} and {second.name} were probed on different data: they cannot be paired")
    if first.conventions != second.conventions:
        raise InputError(f"{first.name} and {second.name} are read under different conventions: no comparison")
    if first.checkpoint.get("response_part") != second.checkpoint.get("response_part"):
        raise InputError(f"{first.name} and {second.name} were measured on different parts of responses: no comparison")
    other = set(second.ids)
    shared = [sample for sample in first.ids if sample in other]
    if not shared:
        raise InputError(f"{first.name} and {second.name} have no measured sample in common: no comparison")
    # Paired: the same utterances are drawn for both.
    first, second = first.subset(shared), replace(second.subset(shared), seed=first.seed)
    about = {"first": first.name, "second": second.name, "n_samples": len(shared)}
    try:
        warnings = filter(None, [first.warning(second, controls), _thinking(first, second)])
        return {**about, **first.differences(second), "warning": "; ".join(warnings) or None}
    except InputError as error:  # too few samples are shared: the results themselves stand
        return {**about, "warning": f"no differences: {error}"}


def _thinking(first: ProbeResult, second: ProbeResult) -> str | None:
    """That only one of two models thinks before it answers, and that this is measured too."""
    thinks = [thinking_summary(result.samples) is not None for result in (first, second)]
    if thinks[0] == thinks[1] or first.PROBE == "evaluate" or "response_part" in first.checkpoint:
        return None
    names = [first.name, second.name]
    return (
        f"{names[thinks.index(True)]} thinks before it answers and {names[thinks.index(False)]} does not; all tokens "
        "were measured: --response-part answer compares the answers"
    )
