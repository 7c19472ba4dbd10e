"""D_i and D_s on a checkpoint's own responses, compared with the base LLM or with the ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lsm_probe.diagnosis.evidence import (
    BETWEEN,
    FOLLOWS,
    IGNORES,
    NO_SPEECH,
    NO_VERDICT,
    Distance,
    Finding,
    Values,
    Verdicts,
    as_text,
    distance,
    interval_text,
    number,
)
from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.probes.sensitivity.result import SensitivityResult

IGNORED, HALF, FOLLOWED = 0.25, 0.5, 0.75
"""Thresholds for D_i as shares of the base LLM's. Below the first, the instruction is ignored. Above the last, it is
followed. Above the middle one, it is followed if a second measurement agrees."""
IGNORED_OF_CEILING, HALF_OF_CEILING, FOLLOWED_OF_CEILING = 0.05, 0.10, 0.15
"""The same thresholds as shares of the ceiling, if there is no base LLM."""
USED, USED_OF_CEILING = 0.3, 0.05
"""Threshold for D_s as a share of the base LLM's, or of the ceiling: below it the speech is not used, above it is."""


@dataclass(frozen=True)
class Reference:
    """The reference that D_i or D_s is compared with.

    Attributes:
        values: the base LLM's value for the same samples, or the ceiling: `[samples]`, nats per token.
        shares: the thresholds, as shares of `values`, by name.
        name: a description such as `the base LLM's 0.45`.
    """

    values: Values
    shares: Mapping[str, float]
    name: str


@dataclass(frozen=True)
class OwnWords:
    """D_i and D_s on the checkpoint's own responses, compared with the base LLM or with the ceiling.

    Attributes:
        own: the measurement; with a base LLM, only the samples that both have.
        instruction, source: the findings about D_i and D_s.
        base: the base LLM's own measurement on the same samples, or None.
        warnings: limitations of the comparison.
    """

    own: SensitivityResult
    instruction: Finding
    source: Finding
    base: SensitivityResult | None
    warnings: Sequence[str]


def own_words(measured: MeasuredCheckpoint) -> OwnWords:
    """Evaluates the sensitivity on the checkpoint's own responses; `measured.own` must not be None."""
    assert measured.own is not None
    own, base = _paired(measured.own.with_conventions(per="token"), measured.base_own)
    notes = []
    if measured.base_own is not None and base is None and measured.base_own.name != measured.own.name:
        notes.append("The base LLM was measured on other samples or instructions, so its D_i and D_s are no reference.")
    references = []
    for which, letter in ((0, "D_i"), (1, "D_s")):
        reference, why_not = _reference(own, base, which)
        references.append(reference)
        if why_not:
            notes.append(f"The base LLM's own {letter} {why_not}. The checkpoint is compared with the ceiling instead.")
    if base is None and measured.source == "speech" and not notes:
        notes.append(
            "There is no base LLM, so D_i and D_s are compared with their ceilings. This comparison is weaker."
        )
    instruction, source = (_distances(own, which, references[which]) for which in (0, 1))
    return OwnWords(
        own,
        _instruction_finding(own, instruction, references[0]),
        _source_finding(own, source["used"], references[1], measured.source),
        base,
        notes,
    )


def _paired(
    own: SensitivityResult, base: SensitivityResult | None
) -> tuple[SensitivityResult, SensitivityResult | None]:
    """Both results on the samples that both have; no base if it is the same model or had other instructions."""
    if base is None or base.name == own.name or base.conventions.instructions != own.conventions.instructions:
        return own, None
    if not set(own.ids) & set(base.ids):
        return own, None
    first, second = own.paired_with(base.with_conventions(per="token"))
    return first, second


def _reference(own: SensitivityResult, base: SensitivityResult | None, which: int) -> tuple[Reference, str]:
    """The reference, and, if it is not the base LLM although there is one, the reason."""
    of_base = {"ignored": IGNORED, "half": HALF, "followed": FOLLOWED} if which == 0 else {"used": USED}
    ceiling = {"ignored": IGNORED_OF_CEILING, "half": HALF_OF_CEILING, "followed": FOLLOWED_OF_CEILING}
    of_ceiling = ceiling if which == 0 else {"used": USED_OF_CEILING}
    why_not = ""
    if base is not None:
        values = base.by_sample()[which]
        found = base.mean(values)
        if found.ci_low > 0:
            return Reference(values, of_base, f"the base LLM's {as_text(float(found.mean))}"), ""
        why_not = f"is {interval_text(found)}, so it may be 0"
    most = own.ceilings()[which]
    return Reference(np.full(len(own.samples), most), of_ceiling, f"the ceiling of {as_text(most)}"), why_not


def _distances(own: SensitivityResult, which: int, reference: Reference) -> dict[str, Distance]:
    values = own.by_sample()[which]
    return {name: distance(own, values - share * reference.values) for name, share in reference.shares.items()}


def _instruction_finding(own: SensitivityResult, distances: Mapping[str, Distance], reference: Reference) -> Finding:
    ignored, followed = distances["ignored"], distances["followed"]
    low, high = (f"{100 * reference.shares[name]:.0f} %" for name in ("ignored", "followed"))
    supports = contradicts = NO_VERDICT
    if followed.above:
        says, supports, contradicts = f"above {high} of", frozenset({FOLLOWS}), frozenset({IGNORES, BETWEEN})
    elif ignored.below:
        says, supports, contradicts = f"below {low} of", frozenset({IGNORES}), frozenset({FOLLOWS, BETWEEN})
    elif ignored.above and followed.below:
        says, supports, contradicts = (
            f"between {low} and {high} of",
            frozenset({BETWEEN}),
            frozenset({FOLLOWS, IGNORES}),
        )
    elif ignored.above:
        says, contradicts = f"above {low}, and perhaps above {high} of", frozenset({IGNORES})
        supports = frozenset({FOLLOWS} if followed.mean > 0 else {BETWEEN})
    elif followed.below:
        says, contradicts = f"below {high}, and perhaps below {low} of", frozenset({FOLLOWS})
        supports = frozenset({IGNORES} if ignored.mean < 0 else {BETWEEN})
    else:
        says = f"neither clearly above {low} nor clearly below {high} of"
    evidence = number(
        own, own.instruction(), "instruction_sensitivity", "D_i, own responses", "nats per token", reference.name,
        f"How much the checkpoint's own responses depend on the instruction: {says} {reference.name}.",
    )  # fmt: skip
    return Finding(evidence, supports, contradicts, distances)


def _source_finding(own: SensitivityResult, used: Distance, reference: Reference, source: str) -> Finding:
    share = f"{100 * reference.shares['used']:.0f} %"
    what = "the speech" if source == "speech" else "the transcript"
    supports = contradicts = NO_VERDICT
    with_source: Verdicts = frozenset({FOLLOWS, IGNORES, BETWEEN})
    if used.above:
        says, supports, contradicts = f"above {share} of", with_source, frozenset({NO_SPEECH})
    elif used.below:
        says, supports, contradicts = f"below {share} of", frozenset({NO_SPEECH}), with_source
    else:
        says = f"neither clearly above nor clearly below {share} of"
    evidence = number(
        own, own.source(), "source_sensitivity", "D_s, own responses", "nats per token", reference.name,
        f"How much the checkpoint's own responses depend on {what}: {says} {reference.name}.",
    )  # fmt: skip
    return Finding(evidence, supports, contradicts, {"used": used})
