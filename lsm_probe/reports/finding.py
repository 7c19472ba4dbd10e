"""The finding in one sentence, by stated rules from the numbers and their intervals.

It speaks of eta averaged over the last of the six groups of layers, where the paper finds the bias. A difference is
claimed where its 95 % interval over paired utterances leaves 0 out, and never otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.scoring import FOLLOWING
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.reference import last_group_eta, last_layers, mean_of_last_group, paired, text_at_length
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
"""Of the most that a source could be worth to the response: below this a checkpoint is said to hardly listen."""
Side = Literal["below", "above", "open"]
Verdict = Literal["same", "opposite", "open", "alone"]


@dataclass(frozen=True)
class Comparison:
    """Eta of the last group of layers, of a checkpoint and of what it is held against.

    Attributes:
        subject: whose eta.
        reference: against whose; None for 0.5.
        described: the reference in words.
    """

    subject: AttentionResult
    reference: AttentionResult | None
    described: str

    def change(self, **conventions: str) -> Curve:
        """Eta of the subject minus that of the reference, paired over the utterances that both have."""
        subject = self.subject.with_conventions(**conventions)
        if self.reference is None:
            own = last_group_eta(subject)
            return Curve(*(end - BALANCED for end in (own.mean, own.ci_low, own.ci_high)))
        reference = self.reference.with_conventions(**conventions)
        subject, reference = paired(subject, reference)
        drawn = mean_of_last_group(subject.resampled_eta()) - mean_of_last_group(reference.resampled_eta())
        return curve(mean_of_last_group(subject.eta().mean) - mean_of_last_group(reference.eta().mean), drawn)


@dataclass(frozen=True)
class Reading:
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
    """What another measurement says of the same claim.

    Attributes:
        source: which.
        verdict: whether it says the same; `alone` where it shows a difference and eta does not.
        text: its numbers in words.
    """

    source: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Finding:
    """The sentence, and what stands behind it.

    Attributes:
        sentence: the finding.
        hearing: that its subject hardly listens, so that its eta says nothing of bias; None where nothing says so.
        comparisons: what it compares, the most important first.
        readings: under the conventions of the results, then under all others.
        evidence: of the other probes.
        caveats: what must be said with it.
    """

    sentence: str
    hearing: str | None
    comparisons: list[Comparison]
    readings: list[Reading]
    evidence: list[Evidence]
    caveats: list[str]


def find_in(results: Results) -> Finding | None:
    """[`find`] in all that was read."""
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
    """Which checkpoint looks least at the instruction, by how much less than what, and what else says so.

    1. The subject is the speech checkpoint of the lowest eta (the text LLM where there is no other).
    2. It is held against the text LLM at its own source length where that was measured, else against the first speech
       checkpoint; and against the next lowest, so that "least" is a claim of its own. Alone, it is held against 0.5.
    3. The sentence claims only differences whose interval leaves 0 out.
    4. It counts the conventions under which all that it claims still holds.
    5. Of a subject to whose own responses the speech is worth less than a tenth of the most it could be, with the whole
       interval (`HARDLY`), it is said that it hardly listens.

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
    readings = _readings(comparisons)
    own = readings[0]
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
    claimed = sides(own.changes[0]) if own.changes else "open"
    evidence = [
        found
        for found in (
            _of_sensitivity(sensitivity, subject.name, rival, claimed),
            _of_knockout(knockout, subject.name, rival, claimed),
            _of_evaluation(evaluation, subject.name, rival, claimed),
        )
        if found is not None
    ]
    said = next((r for r in (*own_words, *sensitivity) if r.name == subject.name and r.of_own_words), None)
    if said is None and subject.checkpoint.source == "speech":
        caveats.append(
            f"whether {subject.name} listens to the speech at all was not measured: lsm-probe sensitivity on its own "
            "words (without --responses) tells"
        )
    hearing = None if said is None else _hearing(said)
    return Finding(_sentence(ranked, comparisons, readings), hearing, comparisons, readings, evidence, caveats)


def sides(change: Curve) -> Side:
    """On which side of 0 the interval lies."""
    if change.ci_high < 0:
        return "below"
    return "above" if change.ci_low > 0 else "open"


def _readings(comparisons: Sequence[Comparison]) -> list[Reading]:
    """All conventions, those of the results first."""
    subject = comparisons[0].subject
    hints = get_type_hints(Conventions)
    # The last convention changes slowest, so that the table shows what each is worth in blocks.
    values = product(*(get_args(hints[name]) for name in reversed(READ)))
    choices = [dict(zip(READ, reversed(chosen), strict=True)) for chosen in values]
    stored = {name: getattr(subject.conventions, name) for name in READ}
    choices.sort(key=lambda choice: choice != stored)
    found: list[tuple[dict[str, str], list[Curve]]] = [(c, [pair.change(**c) for pair in comparisons]) for c in choices]
    claimed = [sides(change) for change in found[0][1]]
    return [
        Reading(choice, last_group_eta(subject.with_conventions(**choice)), changes, _verdict(claimed, changes))
        for choice, changes in found
    ]


def _verdict(claimed: Sequence[Side], changes: Sequence[Curve]) -> Literal["holds", "reversed", "open"]:
    own = [sides(change) for change in changes]
    pairs = [(claim, side) for claim, side in zip(claimed, own, strict=True) if claim != "open"]
    if not pairs:  # nothing is claimed: the same where nothing is found either
        return "holds" if all(side == "open" for side in own) else "open"
    if all(claim == side for claim, side in pairs):
        return "holds"
    return "reversed" if any(side not in (claim, "open") for claim, side in pairs) else "open"


def _sentence(ranked: Sequence[AttentionResult], comparisons: Sequence[Comparison], readings: Sequence[Reading]) -> str:
    subject, own = ranked[0], readings[0]
    first, last = last_layers(subject)
    where = f"layer {first}" if first == last else f"layers {first}–{last}"
    eta = f"η = {shown(own.eta)} in {where}"
    claims = [_clause(c, change) for c, change in zip(comparisons, own.changes, strict=True)]
    kind = "speech checkpoints" if subject.checkpoint.source == "speech" else "text LLMs"
    only, told_apart = len(ranked) == 1, sides(own.changes[0]) == "below"
    if comparisons[0].reference is None:
        said = {
            "below": "looks less at the instruction than at its source",
            "above": "looks more at the instruction than at its source",
            "open": "is not shown to look less at the instruction than at its source, nor more",
        }[sides(own.changes[0])]
        begun = f"{subject.name} {said}: {eta}, {claims[0]}"
    elif only:
        said = {
            "below": "looks less at the instruction than",
            "above": "looks more at the instruction than",
            "open": "is not shown to look less at the instruction than",
        }[sides(own.changes[0])]
        begun = f"{subject.name} {said} {comparisons[0].described}: {eta}, {_amount(own.changes[0])}"
    elif told_apart:
        begun = f"Of {len(ranked)} {kind} {subject.name} looks least at the instruction: {eta}, "
        begun += " and ".join(claims).removesuffix(",")
    else:
        begun = f"Which of {len(ranked)} {kind} looks least at the instruction cannot be told: {subject.name} "
        begun += f"({eta}) is {' and '.join(claims).removesuffix(',')}"
    return f"{begun}; {_survival(own, readings)} ({subject.counted})."


def _clause(comparison: Comparison, change: Curve) -> str:
    """A difference in words: no direction where the interval holds 0."""
    side = sides(change)
    if side == "open":
        return f"not shown to differ from {comparison.described} (difference {shown(change)})"
    return f"{shown(_positive(change))} {side} {comparison.described}"


def _amount(change: Curve) -> str:
    side = sides(change)
    if side == "open":
        return f"a difference of {shown(change)}"
    return f"{shown(_positive(change))} {'less' if side == 'below' else 'more'}"


def _positive(change: Curve) -> Curve:
    return change if change.mean >= 0 else Curve(-change.mean, -change.ci_high, -change.ci_low)


def _survival(own: Reading, readings: Sequence[Reading]) -> str:
    count = {verdict: sum(r.verdict == verdict for r in readings) for verdict in ("holds", "open", "reversed")}
    total = len(readings)
    if all(sides(change) == "open" for change in own.changes):
        ways = [{sides(change) for change in reading.changes} for reading in readings]
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


def _hearing(own_words: SensitivityResult) -> str | None:
    """What is to be said of a checkpoint whose own response hardly depends on its source."""
    found, most = own_words.source(), own_words.ceilings()[1]
    if found.ci_high >= HARDLY * most:
        return None
    return (
        f"But {own_words.name} hardly listens: to its own responses the speech is worth {shown(found)} of at most "
        f"{most:.2f} nats per {own_words.conventions.per}. Of a model that does not listen, η says nothing about bias."
    )


def _of_sensitivity(
    results: Sequence[SensitivityResult], subject: str, rival: str | None, claimed: Side
) -> Evidence | None:
    both = _both(results, subject, rival)
    if both is None:
        return None
    mine, theirs = both
    found = mine.mean(mine.by_sample()[0] - theirs.by_sample()[0])
    amount = _difference(found, f"nats per {mine.conventions.per}")
    text = f"the response of {subject} depends on its instruction {amount} than that of {rival}"
    return Evidence("sensitivity", _agreement(claimed, found), text)


def _of_knockout(results: Sequence[KnockoutResult], subject: str, rival: str | None, claimed: Side) -> Evidence | None:
    both = _both(results, subject, rival)
    if both is None:
        return None
    mine, theirs = both
    place = SEGMENTS.index(Segment.INSTRUCTION)
    found = mine.mean((mine.fall_all_layers - theirs.fall_all_layers)[:, place].astype(np.float64))
    amount = _difference(found, "nats per token")
    text = f"cut off from the instruction in all layers, the response of {subject} loses {amount} than that of {rival}"
    return Evidence("knockout", _agreement(claimed, found), text)


def _of_evaluation(
    results: Sequence[EvaluationResult], subject: str, rival: str | None, claimed: Side
) -> Evidence | None:
    both = _both(results, subject, rival)
    if both is None:
        return None
    mine, theirs = both
    differences = theirs.differences(mine)["differences"]
    rates = [found[FOLLOWING] for found in differences.values() if FOLLOWING in found]
    if not rates:
        return None
    lower = sum(rate["ci_high"] is not None and rate["ci_high"] < 0 for rate in rates)
    higher = sum(rate["ci_low"] is not None and rate["ci_low"] > 0 for rate in rates)
    side: Side = "open" if bool(lower) == bool(higher) else "below" if lower else "above"
    text = (
        f"{subject} gives the asked-for form less often than {rival} in {lower} of {len(rates)} tasks, more often in "
        f"{higher}"
    )
    return Evidence("evaluation", _same(claimed, side), text)


def _both(results: Sequence[Any], subject: str, rival: str | None) -> tuple[Any, Any] | None:
    """Both results on the samples that both have, drawn alike; None where one is missing."""
    named = {result.name: result for result in results}
    if rival is None or subject not in named or rival not in named:
        return None
    mine, theirs = named[subject], named[rival]
    other = set(theirs.ids)
    shared = [sample for sample in mine.ids if sample in other]
    if not shared:
        return None
    return mine.subset(shared), replace(theirs.subset(shared), seed=mine.seed)


def _difference(found: Curve, unit: str) -> str:
    side = sides(found)
    if side == "open":
        return f"neither clearly less nor more ({shown(found)} {unit})"
    return f"{shown(_positive(found))} {unit} {'less' if side == 'below' else 'more'}"


def _agreement(claimed: Side, found: Curve) -> Verdict:
    return _same(claimed, sides(found))


def _same(claimed: Side, side: Side) -> Verdict:
    if "open" in (claimed, side):
        return "open" if side == "open" else "alone"
    return "same" if claimed == side else "opposite"
