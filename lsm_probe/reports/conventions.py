"""Eta under all conventions: the difference between each checkpoint and its reference.

Eta is averaged over the last of the six groups of layers, where the paper finds the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args, get_type_hints

from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.reference import last_group_eta, mean_of_last_group, reference_of
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.runner.result import Curve, curve
from lsm_probe.runner.tables import mixed_dtypes

READ = ("heads", "segment", "aggregate", "span")
"""The conventions that are chosen when a result is read."""
BALANCED = 0.5
Side = Literal["below", "above", "open"]


@dataclass(frozen=True)
class Comparison:
    """Eta of the last group of layers, of a checkpoint and of its reference: another result, or 0.5 (None)."""

    subject: AttentionResult
    reference: AttentionResult | None

    @property
    def title(self) -> str:
        """Both, as the head of a column."""
        reference = f"{BALANCED}" if self.reference is None else self.reference.name
        return f"{self.subject.name} minus {reference}"

    def change(self, **conventions: str) -> Curve:
        """Eta of the subject minus that of the reference over the utterances that both have."""
        subject = self.subject.with_conventions(**conventions)
        if self.reference is None:
            own = last_group_eta(subject)
            return Curve(*(end - BALANCED for end in (own.mean, own.ci_low, own.ci_high)))
        subject, reference = subject.paired_with(self.reference.with_conventions(**conventions))
        drawn = mean_of_last_group(subject.left_out_eta()) - mean_of_last_group(reference.left_out_eta())
        return curve(mean_of_last_group(subject.eta().mean) - mean_of_last_group(reference.eta().mean), drawn)


def choices(name: str) -> tuple[str, ...]:
    """The values of a convention, the default first."""
    return get_args(get_type_hints(Conventions)[name])


def all_conventions(attention: Sequence[AttentionResult]) -> list[dict[str, str]]:
    """All combinations of the conventions in [`READ`], with that of the results first."""
    # The last convention changes slowest, so that a table shows the effect of each in blocks.
    values = product(*(choices(name) for name in reversed(READ)))
    chosen = [dict(zip(READ, reversed(value), strict=True)) for value in values]
    stored = {name: getattr(attention[0].conventions, name) for name in READ}
    return sorted(chosen, key=lambda choice: choice != stored)


def comparisons(attention: Sequence[AttentionResult]) -> list[Comparison]:
    """Each speech checkpoint with its reference: the text LLM at the same source length, or, without a text LLM, the
    first speech checkpoint. If there is only one result, it is compared with 0.5."""
    measured = [result for result in attention if not result.is_control]
    pairs = [(result, reference_of(attention, result)) for result in measured]
    known = [
        Comparison(one, other) for one, other in pairs if other is not None and not set(one.ids).isdisjoint(other.ids)
    ]
    return known or [Comparison(result, None) for result in measured]


def sides(change: Curve) -> Side:
    """The side of 0 on which the interval lies."""
    if change.ci_high < 0:
        return "below"
    return "above" if change.ci_low > 0 else "open"


def eta_warnings(attention: Sequence[AttentionResult]) -> list[str]:
    """Why eta of some checkpoints cannot be compared directly: source length alone changes eta, and so does dtype."""
    measured = [result for result in attention if not result.is_control]
    speech = [result for result in measured if result.checkpoint.source == "speech"]
    text = next((result for result in measured if result.checkpoint.source == "text"), None)
    found = []
    if len(measured) == 1:
        found.append(
            "η also depends on the number of source tokens, so η of a single checkpoint is hard to interpret. "
            "Measure the base LLM too (lsm-probe attention with a second --ckpt) to compare both at the same source "
            "length."
        )
    if text is not None:
        bare = [result.name for result in speech if reference_of(attention, result) is None]
        if bare:
            found.append(
                f"η of {', '.join(bare)} is not compared with that of {text.name}: the transcripts have fewer or more "
                "tokens than the speech, and the results have no length-matched control. lsm-probe attention measures "
                "the control if one run is given both checkpoints."
            )
    pairs = [(each.subject, each.reference) for each in comparisons(attention) if each.reference is not None]
    compared = [{one.name, other.name} for one, other in pairs]
    pairs += [(speech[0], other) for other in speech[1:] if {speech[0].name, other.name} not in compared]
    told = [(one, other, one.warning(other)) for one, other in pairs]
    found += [f"{one.name} and {other.name}: {warning}." for one, other, warning in told if warning is not None]
    return found + mixed_dtypes(attention)
