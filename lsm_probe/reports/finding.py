"""The finding in one sentence, by stated rules from the numbers and their intervals.

It speaks of eta averaged over the last of the six groups of layers, where the paper finds the bias. A difference is
claimed where its 95 % interval over paired utterances leaves 0 out, and never otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.scoring import FOLLOWING
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.reference import last_group_eta, last_layers, mean_of_last_group, text_at_length
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.knockout.result import SEGMENTS, KnockoutResult
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.reports.collection import Results
from lsm_probe.runner.result import Curve, curve
from lsm_probe.runner.tables import shown

READ = ("heads", "segment", "aggregate", "span")
"""The conventions that are chosen when a result is read."""
BALANCED = 0.5
HARDLY = 0.1
"""Share of the largest possible D_source: below it a checkpoint is said to hardly use the speech."""
Side = Literal["below", "above", "open"]
Verdict = Literal["same", "opposite", "open", "alone"]


@dataclass(frozen=True)
class Comparison:
    """Eta of the last group of layers, of a checkpoint and of its reference: another result, or 0.5 (None)."""

    subject: AttentionResult
    reference: AttentionResult | None
    described: str

    def change(self, **conventions: str) -> Curve:
        """Eta of the subject minus that of the reference over the utterances that both have."""
        subject = self.subject.with_conventions(**conventions)
        if self.reference is None:
            own = last_group_eta(subject)
            return Curve(*(end - BALANCED for end in (own.mean, own.ci_low, own.ci_high)))
        subject, reference = subject.paired_with(self.reference.with_conventions(**conventions))
        drawn = mean_of_last_group(subject.resampled_eta()) - mean_of_last_group(reference.resampled_eta())
        return curve(mean_of_last_group(subject.eta().mean) - mean_of_last_group(reference.eta().mean), drawn)


@dataclass(frozen=True)
class ConventionCheck:
    """The finding under one choice of conventions.

    Attributes:
        conventions: the choice, by the names in `READ`.
        eta: of the subject.
        changes: one for each comparison of the finding.
        verdict: `holds`, `reversed` (a claimed difference lies on the other side) or `open`.
    """

    conventions: dict[str, str]
    eta: Curve
    changes: list[Curve]
    verdict: Literal["holds", "reversed", "open"]


@dataclass(frozen=True)
class Evidence:
    """What another measurement, `source`, says about the same claim; `alone` if only it shows a difference."""

    source: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Finding:
    """The sentence and its evidence.

    Attributes:
        sentence: the finding.
        speech_use: that its subject hardly uses the speech, so that its eta says nothing about bias; None if that was
            not found.
        comparisons: what it compares, the most important first.
        checks: under the conventions of the results, then under all others.
        evidence: of the other probes.
        caveats: what must be said with it.
    """

    sentence: str
    speech_use: str | None
    comparisons: list[Comparison]
    checks: list[ConventionCheck]
    evidence: list[Evidence]
    caveats: list[str]


def choices(name: str) -> tuple[str, ...]:
    """The values of a convention, the default first."""
    return get_args(get_type_hints(Conventions)[name])


def find_in(results: Results) -> Finding | None:
    """The finding of all results of a report."""
    return find(
        results.attention, results.sensitivity, results.knockout, results.evaluation, own_words=results.own_words
    )


def find(
    attention: Sequence[AttentionResult],
    sensitivity: Sequence[SensitivityResult] = (),
    knockout: Sequence[KnockoutResult] = (),
    evaluation: Sequence[EvaluationResult] = (),
    own_words: Sequence[SensitivityResult] = (),
) -> Finding | None:
    """Find which checkpoint looks least at the instruction, by how much less, and what the other probes say.

    1. The subject is the speech checkpoint with the lowest eta (the text LLM if there is no other).
    2. It is compared with the text LLM at its own source length if that was measured, else with the first speech
       checkpoint; and with the next lowest, so that "least" is a claim of its own. Alone, it is compared with 0.5.
    3. The sentence claims only differences whose interval excludes 0.
    4. It counts the conventions under which all that it claims still holds.
    5. The subject is said to hardly use the speech if the speech adds less than a tenth (`HARDLY`) of the largest
       possible amount to its own responses, with the whole interval.

    Returns:
        None without attention results.
    """
    measured = [result for result in attention if not result.is_control]
    if not measured:
        return None
    speech = [result for result in measured if result.checkpoint.source == "speech"]
    subjects = speech or measured
    ranked = sorted(subjects, key=lambda result: float(last_group_eta(result).mean))
    subject, caveats = ranked[0], []
    comparisons = []
    if len(ranked) > 1:
        comparisons.append(Comparison(subject, ranked[1], f"{ranked[1].name}, the next lowest,"))
    text = next((r for r in measured if r.checkpoint.source == "text"), None) if speech else None
    if text is not None:
        held = text_at_length(attention, text, subject)
        if held is None:
            caveats.append(
                f"{text.name} is not compared with: its transcripts are not as long as the speech of {subject.name}, "
                "and no length-matched control is among the results"
            )
        else:
            comparisons.append(Comparison(subject, held, f"the text LLM {text.name} at the same source length"))
    elif len(subjects) > 2 and subjects[0] not in ranked[:2]:
        comparisons.append(Comparison(subject, subjects[0], f"{subjects[0].name}, the first"))
    if not comparisons:
        comparisons.append(Comparison(subject, None, "0.5"))
        caveats.append("alone, an η also says how many source tokens there are: hold it against a reference")
    checks = _check_conventions(comparisons)
    caveats += [
        warning
        for c in comparisons
        if c.reference is not None and (warning := c.subject.warning(c.reference)) is not None
    ]
    if len(subjects) > 2:
        caveats.append(
            f"the lowest of {len(subjects)} was chosen after looking: its intervals are not corrected for it"
        )
    rival = ranked[1].name if len(ranked) > 1 else None if text is None else text.name
    evidence = []
    for source, results, look_up in (
        ("sensitivity", sensitivity, _of_sensitivity),
        ("knockout", knockout, _of_knockout),
        ("evaluation", evaluation, _of_evaluation),
    ):
        pair = _both(results, subject.name, rival)
        if pair is not None and (found := look_up(*pair)) is not None:
            evidence.append(Evidence(source, _agreement(sides(checks[0].changes[0]), found[0]), found[1]))
    own = next((r for r in (*own_words, *sensitivity) if r.name == subject.name and r.of_own_words), None)
    if own is None and subject.checkpoint.source == "speech":
        caveats.append(
            f"whether {subject.name} uses the speech at all was not measured: lsm-probe sensitivity on its own "
            "responses (without --responses) measures it"
        )
    speech_use = None if own is None else _speech_use(own)
    return Finding(_sentence(ranked, comparisons, checks), speech_use, comparisons, checks, evidence, caveats)


def sides(change: Curve) -> Side:
    """On which side of 0 the interval lies."""
    if change.ci_high < 0:
        return "below"
    return "above" if change.ci_low > 0 else "open"


def _check_conventions(comparisons: Sequence[Comparison]) -> list[ConventionCheck]:
    """The finding under all conventions, those of the results first."""
    subject = comparisons[0].subject
    # The last convention changes slowest, so that the table shows the effect of each in blocks.
    values = product(*(choices(name) for name in reversed(READ)))
    chosen = [dict(zip(READ, reversed(value), strict=True)) for value in values]
    stored = {name: getattr(subject.conventions, name) for name in READ}
    chosen.sort(key=lambda choice: choice != stored)
    changes = [[pair.change(**choice) for pair in comparisons] for choice in chosen]
    claimed = [sides(change) for change in changes[0]]
    return [
        ConventionCheck(choice, last_group_eta(subject.with_conventions(**choice)), own, _verdict(claimed, own))
        for choice, own in zip(chosen, changes, strict=True)
    ]


def _verdict(claimed: Sequence[Side], changes: Sequence[Curve]) -> Literal["holds", "reversed", "open"]:
    own = [sides(change) for change in changes]
    pairs = [(claim, side) for claim, side in zip(claimed, own, strict=True) if claim != "open"]
    if not pairs:  # nothing is claimed: the same where nothing is found either
        return "holds" if all(side == "open" for side in own) else "open"
    if all(claim == side for claim, side in pairs):
        return "holds"
    return "reversed" if any(side not in (claim, "open") for claim, side in pairs) else "open"


def _sentence(
    ranked: Sequence[AttentionResult], comparisons: Sequence[Comparison], checks: Sequence[ConventionCheck]
) -> str:
    subject, own = ranked[0], checks[0]
    first, last = last_layers(subject)
    where = f"layer {first}" if first == last else f"layers {first}–{last}"
    eta = f"η = {shown(own.eta)} in {where}"
    claims = [_clause(c, change) for c, change in zip(comparisons, own.changes, strict=True)]
    kind = "speech checkpoints" if subject.checkpoint.source == "speech" else "text LLMs"
    side = sides(own.changes[0])
    if comparisons[0].reference is None:
        said = {
            "below": "looks less at the instruction than at its source",
            "above": "looks more at the instruction than at its source",
            "open": "is not shown to look less at the instruction than at its source, nor more",
        }[side]
        begun = f"{subject.name} {said}: {eta}, {claims[0]}"
    elif len(ranked) == 1:
        said = {
            "below": "looks less at the instruction than",
            "above": "looks more at the instruction than",
            "open": "is not shown to look less at the instruction than",
        }[side]
        amount = f"{shown(_positive(own.changes[0]))} {'less' if side == 'below' else 'more'}"
        amount = f"a difference of {shown(own.changes[0])}" if side == "open" else amount
        begun = f"{subject.name} {said} {comparisons[0].described}: {eta}, {amount}"
    elif side == "below":
        begun = f"Of {len(ranked)} {kind} {subject.name} looks least at the instruction: {eta}, "
        begun += " and ".join(claims).removesuffix(",")
    else:
        begun = f"Which of {len(ranked)} {kind} looks least at the instruction cannot be told: {subject.name} "
        begun += f"({eta}) is {' and '.join(claims).removesuffix(',')}"
    return f"{begun}; {_survival(own, checks)} ({subject.counted})."


def _clause(comparison: Comparison, change: Curve) -> str:
    """A difference in words: no direction where the interval holds 0."""
    side = sides(change)
    if side == "open":
        return f"not shown to differ from {comparison.described} (difference {shown(change)})"
    return f"{shown(_positive(change))} {side} {comparison.described}"


def _positive(change: Curve) -> Curve:
    return change if change.mean >= 0 else Curve(-change.mean, -change.ci_high, -change.ci_low)


def _survival(own: ConventionCheck, checks: Sequence[ConventionCheck]) -> str:
    count = {verdict: sum(r.verdict == verdict for r in checks) for verdict in ("holds", "open", "reversed")}
    total = len(checks)
    if all(sides(change) == "open" for change in own.changes):
        ways = [{sides(change) for change in check.changes} for check in checks]
        less, more = sum("below" in way for way in ways), sum("above" in way for way in ways)
        return f"lower is shown under {less} of {total} conventions, higher under {more}"
    if count["holds"] == total:
        return f"this holds under all {total} conventions"
    parts = [f"this holds under {count['holds']} of {total} conventions"]
    if count["open"]:
        parts.append(f"is not shown under {count['open']}")
    if count["reversed"]:
        parts.append(f"is reversed under {count['reversed']}")
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _speech_use(own_words: SensitivityResult) -> str | None:
    """What must be said about a checkpoint whose own responses hardly depend on the speech."""
    found, most = own_words.source(), own_words.ceilings()[1]
    if not found.ci_high < HARDLY * most:
        return None
    return (
        f"But {own_words.name} hardly uses the speech: it adds {shown(found)} of at most {most:.2f} nats per "
        f"{own_words.conventions.per} to its own responses. η of a model that does not use the speech says nothing "
        "about bias."
    )


def _of_sensitivity(mine: SensitivityResult, theirs: SensitivityResult) -> tuple[Side, str]:
    found = mine.mean(mine.by_sample()[0] - theirs.by_sample()[0])
    amount = _difference(found, f"nats per {mine.conventions.per}")
    return sides(found), f"the response of {mine.name} depends on its instruction {amount} than that of {theirs.name}"


def _of_knockout(mine: KnockoutResult, theirs: KnockoutResult) -> tuple[Side, str]:
    place = SEGMENTS.index(Segment.INSTRUCTION)
    found = mine.mean((mine.fall_all_layers - theirs.fall_all_layers)[:, place].astype(np.float64))
    amount = _difference(found, "nats per token")
    return sides(found), (
        f"cut off from the instruction in all layers, the response of {mine.name} loses {amount} than that of "
        f"{theirs.name}"
    )


def _of_evaluation(mine: EvaluationResult, theirs: EvaluationResult) -> tuple[Side, str] | None:
    differences = theirs.differences(mine)["differences"]
    rates = [found[FOLLOWING] for found in differences.values() if FOLLOWING in found]
    if not rates:
        return None
    lower = sum(rate["ci_high"] is not None and rate["ci_high"] < 0 for rate in rates)
    higher = sum(rate["ci_low"] is not None and rate["ci_low"] > 0 for rate in rates)
    return "open" if bool(lower) == bool(higher) else "below" if lower else "above", (
        f"{mine.name} gives the asked-for form less often than {theirs.name} in {lower} of {len(rates)} tasks, more "
        f"often in {higher}"
    )


def _both(results: Sequence[Any], subject: str, rival: str | None) -> tuple[Any, Any] | None:
    """Both results on the samples that both have, drawn alike; None where one is missing."""
    named = {result.name: result for result in results}
    if rival is None or subject not in named or rival not in named:
        return None
    mine, theirs = named[subject], named[rival]
    return None if set(mine.ids).isdisjoint(theirs.ids) else mine.paired_with(theirs)


def _difference(found: Curve, unit: str) -> str:
    side = sides(found)
    if side == "open":
        return f"neither clearly less nor more ({shown(found)} {unit})"
    return f"{shown(_positive(found))} {unit} {'less' if side == 'below' else 'more'}"


def _agreement(claimed: Side, side: Side) -> Verdict:
    if "open" in (claimed, side):
        return "open" if side == "open" else "alone"
    return "same" if claimed == side else "opposite"
