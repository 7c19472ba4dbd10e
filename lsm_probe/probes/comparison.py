"""Comparing checkpoints on the same samples: paired differences of eta, and what forbids taking them bare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from lsm_probe.bootstrap import interval
from lsm_probe.errors import InputError
from lsm_probe.probes.result import SEGMENTS, AttentionResult, Curve

SCHEMA = "lsm-probe/comparison/1"


def compare(results: Sequence[AttentionResult]) -> dict[str, Any]:
    """What `comparison.json` holds: for each pair, second minus first, on the samples both have.

    Raises:
        InputError: if two results come from other data or conventions.
    """
    return {
        "schema": SCHEMA,
        "conventions": results[0].conventions.to_dict(),
        "pairs": [_pair(first, second) for first, second in combinations(results, 2)],
    }


def eta_difference(first: AttentionResult, second: AttentionResult) -> Curve:
    """Eta of `second` minus eta of `first` by layer, with its 95 % interval over paired utterances.

    Both must hold the same samples in the same order.
    """
    low, high = interval(second.resampled_eta() - first.resampled_eta())
    return Curve(second.eta().mean - first.eta().mean, low, high)


def length_warning(first: AttentionResult, second: AttentionResult) -> str | None:
    """Says why two curves on the same samples must not be compared bare, or None.

    Eta depends on the number of source tokens more than on what it is meant to show: `mean` rises and `sum` falls
    as the source gets longer.
    """
    if np.array_equal(first.tokens, second.tokens):
        return None
    source = SEGMENTS.index("source")
    if np.array_equal(np.delete(first.tokens, source, 1), np.delete(second.tokens, source, 1)):
        means = [f"{r.name} {r.tokens[:, source].mean():.1f}" for r in (first, second)]
        return (
            f"source lengths differ ({means[0]}, {means[1]} tokens on average), which moves eta by itself: read "
            "`mean` and `sum` together, and compare with a length-matched control"
        )
    return f"{first.name} and {second.name} lay their prompts out differently, which moves eta by itself"


def _pair(first: AttentionResult, second: AttentionResult) -> dict[str, Any]:
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
    warning = length_warning(first, second)
    if first.n_layers != second.n_layers:
        depths = (
            f"{first.name} has {first.n_layers} layers and {second.name} {second.n_layers}: no differences by layer"
        )
        warning = depths if warning is None else f"{depths}; {warning}"
    return {
        "first": first.name,
        "second": second.name,
        "n_samples": len(shared),
        "eta_difference": _differences(first, second) if first.n_layers == second.n_layers else None,
        "source_tokens": [round(float(r.tokens[:, SEGMENTS.index("source")].mean()), 3) for r in (first, second)],
        "same_lengths": bool(np.array_equal(first.tokens, second.tokens)),
        "warning": warning,
    }


def _differences(first: AttentionResult, second: AttentionResult) -> dict[str, Any]:
    both = {s: [r.with_conventions(segment=s) for r in (first, second)] for s in ("mean", "sum")}
    return {segment: eta_difference(*pair).to_dict() for segment, pair in both.items()}
