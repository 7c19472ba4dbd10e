"""The rules that turn the measurements of a checkpoint into a verdict; `docs/verdicts.md` explains and tests them.

Two questions decide, and each is answered by several measurements. Does the checkpoint use the speech (D_s and the word
error rate)? Does it follow the instruction (D_i, the share of responses that repeat the speech, and the share in the
requested format)? Eta is never decisive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lsm_probe.diagnosis.by_task import mostly_repeating, numbers_by_task
from lsm_probe.diagnosis.evidence import (
    BETWEEN,
    CANNOT_TELL,
    FEWEST_UTTERANCES,
    FOLLOWS,
    IGNORES,
    NO_SPEECH,
    Distance,
    Finding,
    as_text,
)
from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.diagnosis.own_words import OwnWords, own_words
from lsm_probe.diagnosis.responses import empty_responses, find_repetitions, form, repetitions
from lsm_probe.diagnosis.supporting import supporting
from lsm_probe.diagnosis.transcription import own_transcriptions, transcription
from lsm_probe.diagnosis.verdict import Evidence, Side, TaskNumbers, Verdict, VerdictName
from lsm_probe.intervals import most_influential

MOSTLY_EMPTY, SOME_EMPTY = 0.5, 0.1
"""Shares of empty responses: at the first no verdict is given, at the second there is a warning."""
SAME = 1e-6
"""D_s below this in every sample, in nats per token, means that the source makes no difference."""

NOTABLE = 0.02
"""An utterance is named if it moves D_i or D_s by at least this, in nats per token."""

LIMITS = (
    "The verdict holds for the instructions in these data, not for other instructions.",
    "D_i and D_s depend on the pools of instructions and utterances that they are computed with.",
    "Intervals cover the variation between utterances. They do not cover the variation between training seeds.",
)
"""What no verdict says."""

_WORDS = (
    "Responses that are not empty: raise --max-new-tokens (a response that stops before its thinking ends counts as "
    "empty), or check the prompt template."
)
Answer = Literal["yes", "no", "both", "open"]


def judge(measured: MeasuredCheckpoint) -> Verdict:
    """The verdict about a checkpoint.

    Example:
        >>> judge(MeasuredCheckpoint(name="my-lsm", source="speech")).verdict
        'cannot tell'
    """
    if (without_measurement := _not_measured(measured)) is not None:
        return without_measurement
    own, heard = own_words(measured), transcription(measured.transcription)
    said = own_transcriptions(measured.transcription, heard)
    repeats = find_repetitions(own, measured.tasks, said)
    by_task = numbers_by_task(own, repeats)
    case = _Case(measured.source, own, repetitions(own, repeats, said), form(own, measured.tasks), heard, by_task)
    verdict = _enough(measured, case) or _decide(measured, case)
    warnings = [*verdict.warnings, *own.warnings, *_warnings(measured, case, verdict.verdict)]
    evidence = [_with_side(each, verdict.verdict) for each in (*case.findings, *supporting(measured))]
    return replace(verdict, evidence=evidence, warnings=warnings, by_task=by_task)


@dataclass(frozen=True)
class _Case:
    """The decisive findings about one checkpoint; None for those that were not measured or do not apply."""

    source: Literal["speech", "text"]
    own: OwnWords
    repeats: Finding | None
    form: Finding | None
    transcription: Finding | None
    by_task: Sequence[TaskNumbers]

    @property
    def findings(self) -> list[Finding]:
        found = (self.own.instruction, self.own.source, self.transcription, self.repeats, self.form)
        return [each for each in found if each is not None]

    @property
    def speech(self) -> str:
        """What is in the source slot, in words."""
        return "speech" if self.source == "speech" else "transcript"

    @property
    def mostly_repeats(self) -> bool:
        return self.repeats is not None and self.repeats["most"].above

    @property
    def rarely_repeats(self) -> bool:
        """Whether the share of responses that repeat the speech is clearly below half."""
        return self.repeats is not None and self.repeats["most"].below

    @property
    def may_repeat_often(self) -> bool:
        """Whether the share of responses that repeat the speech is too large to follow the instruction."""
        return self.repeats is not None and self.repeats["many"].mean > 0

    @property
    def repeated_tasks(self) -> str:
        """The tasks for which most responses only repeat the speech, in words; empty if there are none."""
        return mostly_repeating(self.by_task)

    @property
    def in_form(self) -> bool:
        """Whether the share of responses in the requested format is more than half of the base LLM's share."""
        return self.form is not None and "half" in self.form.distances and self.form["half"].above

    @property
    def out_of_form(self) -> bool:
        """Whether the share of responses in the requested format is less than half of the base LLM's share."""
        return self.form is not None and "half" in self.form.distances and self.form["half"].below

    def uses_speech(self) -> Answer:
        """Whether the checkpoint uses the speech.

        `yes` or `no` if the interval of D_s is on one side of its threshold, or if its mean is and the word error rate
        agrees; `both` if D_s says no and the word error rate says yes.
        """
        used = self.own.source["used"]
        understood = self.transcription is not None and self.transcription["understood"].below
        not_understood = self.transcription is not None and self.transcription["understood"].above
        if used.below:
            return "both" if understood else "no"
        if used.above or (understood and used.mean > 0):
            return "yes"
        return "no" if not_understood and used.mean < 0 else "open"

    def follows(self) -> bool:
        """Whether the checkpoint follows the instruction.

        It does if the interval of D_i is above its upper threshold. It also does if the mean is above the upper
        threshold, the interval is above the middle one, and a second measurement agrees: the share in the requested
        format, or a share of repetitions clearly below half. In both cases few responses may repeat the speech: D_i is
        a mean over instructions, and a large D_i for some of them can hide that others are ignored.
        """
        instruction = self.own.instruction
        agreed = instruction["followed"].mean > 0 and instruction["half"].above
        agreed = agreed and (self.in_form or self.rarely_repeats)
        return (instruction["followed"].above or agreed) and not self.may_repeat_often and not self.may_not_follow()

    def may_not_follow(self) -> bool:
        """Whether some measurement rules out that the checkpoint follows the instruction."""
        repeats_many = self.repeats is not None and self.repeats["many"].above
        return self.own.instruction["followed"].below or repeats_many or self.out_of_form

    def ignores(self) -> bool:
        """Whether D_i is below its lower threshold, or its mean is and most responses repeat the speech."""
        ignored = self.own.instruction["ignored"]
        return (ignored.below or (ignored.mean < 0 and self.mostly_repeats)) and not self.may_not_ignore()

    def may_not_ignore(self) -> bool:
        """Whether some measurement rules out that the checkpoint ignores the instruction."""
        return self.own.instruction["ignored"].above or self.in_form


def _decide(measured: MeasuredCheckpoint, case: _Case) -> Verdict:
    uses = case.uses_speech()
    if uses == "no":
        return _no_speech(measured, case)
    if uses == "open":
        return _open_source(measured, case)
    if uses == "both":
        what = "It understands the speech, but its responses to these instructions hardly depend on it"
        return _verdict(measured, case, BETWEEN, what)
    if case.follows():
        return _verdict(measured, case, FOLLOWS, f"Its responses depend on the instruction and on the {case.speech}")
    if case.ignores():
        what = f"Its responses depend on the {case.speech} and hardly on the instruction"
        if case.source == "text":
            what += " (this is no bias towards speech, because it reads transcripts)"
        return _verdict(measured, case, IGNORES, what)
    if case.may_not_follow() and case.may_not_ignore():
        return _verdict(measured, case, BETWEEN, "It follows the instruction only in part")
    return _open_instruction(measured, case)


def _verdict(
    measured: MeasuredCheckpoint, case: _Case, verdict: VerdictName, what: str, missing: Sequence[str] = ()
) -> Verdict:
    return Verdict(checkpoint=measured.name, verdict=verdict, reason=f"{what}: {_numbers(case)}.", missing=missing)


def _no_speech(measured: MeasuredCheckpoint, case: _Case) -> Verdict:
    if case.source == "text":
        what = "It reads transcripts and its responses hardly depend on them, so no verdict fits"
        return _verdict(
            measured,
            case,
            CANNOT_TELL,
            what,
            ["Data with instructions that cannot be answered without the transcript."],
        )
    neither = case.own.instruction["ignored"].below
    what = "Its responses " + ("depend on neither speech nor instruction" if neither else "hardly depend on the speech")
    return _verdict(measured, case, NO_SPEECH, what)


def _open_source(measured: MeasuredCheckpoint, case: _Case) -> Verdict:
    used = case.own.source["used"]
    missing = [f"{_more(used)} would show whether the responses depend on the {case.speech} (D_s)."]
    if case.transcription is None and case.source == "speech":
        missing.append("The word error rate on a transcription instruction. It needs transcripts in the data.")
    what = f"The data do not show whether its responses depend on the {case.speech}"
    return _verdict(measured, case, CANNOT_TELL, what, missing)


def _open_instruction(measured: MeasuredCheckpoint, case: _Case) -> Verdict:
    ruled_out = {FOLLOWS: case.may_not_follow(), IGNORES: case.may_not_ignore()}
    possible = [name for name in (FOLLOWS, BETWEEN, IGNORES) if not ruled_out.get(name)]
    questions = {
        "ignored": "it ignores the instruction (D_i)",
        "followed": "it follows the instruction (D_i)",
    }
    missing = [
        f"{_more(case.own.instruction[name])} would show whether {question}."
        for name, question in questions.items()
        if case.own.instruction[name].is_open
    ]
    if case.may_repeat_often and case.repeats is not None and case.repeats["many"].is_open:
        more = _more(case.repeats["many"])
        missing.append(f"{more} would show whether more than a quarter of the responses only repeat the {case.speech}.")
    if case.own.base is None and case.source == "speech":
        missing.append("The base LLM (--base). It shows how large D_i is in a model that follows the instruction.")
    if not missing:
        missing = ["The measurements contradict each other: read single responses."]
    choice = " and ".join([", ".join(f'"{name}"' for name in possible[:-1]), f'"{possible[-1]}"'])
    what = f"It uses the {case.speech}, but the data do not decide between {choice}"
    return _verdict(measured, case, CANNOT_TELL, what, missing)


def _more(distance: Distance) -> str:
    more = distance.more_utterances()
    return f"{'About ' if more.isdigit() else ''}{more} more utterance{'' if more == '1' else 's'}".capitalize()


# Cases that no rule can decide


def _not_measured(measured: MeasuredCheckpoint) -> Verdict | None:
    """`cannot tell` if the decisive measurement is missing."""
    if measured.own is not None:
        return None
    reason = "The sensitivity of its own responses was not measured. There is no verdict without it."
    missing = "Run lsm-probe sensitivity on its own responses, with at least two instructions and at least "
    result = measured.transcription
    empty = [] if result is None else empty_responses(result)
    if result is not None and len(empty) == len(set(result.ids) | set(empty)):
        reason = f"All {len(empty)} responses are empty, so there is nothing to measure."
        return Verdict(checkpoint=measured.name, verdict=CANNOT_TELL, reason=reason, missing=[_WORDS])
    missing += f"{FEWEST_UTTERANCES} utterances."
    evidence = [_with_side(each, CANNOT_TELL) for each in supporting(measured)]
    return Verdict(checkpoint=measured.name, verdict=CANNOT_TELL, reason=reason, missing=[missing], evidence=evidence)


def _enough(measured: MeasuredCheckpoint, case: _Case) -> Verdict | None:
    """`cannot tell` if there are too few responses or utterances for any rule."""
    assert measured.own is not None
    empty, n_responses = _empty_share(measured)
    if empty >= MOSTLY_EMPTY * n_responses:
        return Verdict(
            checkpoint=measured.name, verdict=CANNOT_TELL,
            reason=f"{empty} of {n_responses} responses are empty, so there is too little to measure.",
            missing=[_WORDS],
        )  # fmt: skip
    n = case.own.source.evidence.n_utterances
    if n >= FEWEST_UTTERANCES:
        return None
    return Verdict(
        checkpoint=measured.name, verdict=CANNOT_TELL,
        reason=f"Only {n} utterance{' was' if n == 1 else 's were'} measured; a verdict needs {FEWEST_UTTERANCES}.",
        missing=[f"At least {FEWEST_UTTERANCES - n} more utterance{'' if FEWEST_UTTERANCES - n == 1 else 's'}."],
    )  # fmt: skip


def _empty_share(measured: MeasuredCheckpoint) -> tuple[int, int]:
    """Number of empty responses, and number of all responses."""
    assert measured.own is not None
    empty = empty_responses(measured.own)
    measured_ids = set(measured.own.ids)
    return len(empty), len(measured_ids | set(empty))


# Words


def _numbers(case: _Case) -> str:
    """The decisive numbers without their intervals, which are in the evidence."""
    instruction, source = case.own.instruction.evidence, case.own.source.evidence
    parts = [
        f"D_i is {as_text(instruction.value)} nats per token, compared with {instruction.compared_with}",
        f"D_s is {as_text(source.value)}, compared with {source.compared_with}",
    ]
    if case.transcription is not None:
        errors = case.transcription.evidence
        parts.append(f"the word error rate is {errors.value:.0f} %, compared with {errors.compared_with}")
    if case.repeats is not None:
        parts.append(f"{_percent(case.repeats)} of the responses repeat the {case.speech}")
    if case.form is not None:
        parts.append(f"{_percent(case.form)} have the asked-for form")
    return "; ".join(parts)


def _percent(share: Finding) -> str:
    return f"{100 * (share.evidence.value or 0):.0f} %"


def _with_side(finding: Finding, verdict: VerdictName) -> Evidence:
    side: Side = "for" if verdict in finding.supports else "against" if verdict in finding.contradicts else "open"
    return replace(finding.evidence, side=side)


# Warnings


def _warnings(measured: MeasuredCheckpoint, case: _Case, verdict: VerdictName) -> Iterable[str]:
    assert measured.own is not None
    empty, n_responses = _empty_share(measured)
    if SOME_EMPTY * n_responses <= empty < MOSTLY_EMPTY * n_responses:
        yield f"{empty} of {n_responses} responses are empty."
    if case.source == "speech" and verdict == NO_SPEECH:
        if np.abs(measured.own.by_sample()[1]).max() < SAME:
            yield "All recordings give the same result: check that they are not silent or identical."
        if case.transcription is None:
            yield "The word error rate was not measured, so it could not confirm this verdict."
    if verdict in (FOLLOWS, BETWEEN, CANNOT_TELL) and case.repeated_tasks:
        yield f"Most responses to some instructions only repeat the {case.speech}: {case.repeated_tasks}."
    yield from _carried_by_one(case, verdict)
    own = case.own.own
    for label, values in zip(("D_i", "D_s"), own.by_sample(), strict=True):
        found = most_influential(values, own.clusters)
        note = own.influence_note(label, values)
        if note is not None and abs(found.mean - found.mean_without) >= NOTABLE:
            yield f"{note[0].upper()}{note[1:]}."


def _carried_by_one(case: _Case, verdict: VerdictName) -> Iterable[str]:
    """Warns if the decisive mean would be on the other side of its threshold without one utterance."""
    decisive = {
        FOLLOWS: [(case.own.instruction, "followed", "D_i")],
        IGNORES: [(case.own.instruction, "ignored", "D_i")],
        NO_SPEECH: [(case.own.source, "used", "D_s")],
    }.get(verdict, [])
    for finding, threshold, letter in decisive:
        if (sample := finding[threshold].carrier) is not None:
            yield (
                f"Without the utterance of sample {sample}, {letter} would lie on the other side of its threshold, and "
                "the verdict would not hold."
            )
