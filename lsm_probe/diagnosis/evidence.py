"""The numbers that a verdict rests on: each with its interval, its threshold, and the verdicts it speaks for."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.diagnosis.verdict import Evidence, VerdictName
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.metrics import word_error_rate
from lsm_probe.evaluation.scoring import Predictions, truncate
from lsm_probe.evaluation.task import Task
from lsm_probe.models.segments import Segment
from lsm_probe.models.thinking import UNFINISHED
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.runner.prepared_samples import EMPTY
from lsm_probe.runner.result import Curve, MeasurementResult, layer_groups

Values = NDArray[np.floating[Any]]

FOLLOWS: VerdictName = "follows the instruction"
IGNORES: VerdictName = "ignores the instruction (speech anchor bias)"
NO_SPEECH: VerdictName = "does not use the speech"
BETWEEN: VerdictName = "in between"
CANNOT_TELL: VerdictName = "cannot tell"

FEWEST_UTTERANCES = 6
"""With fewer, not even a sign test can reach a level of 5 %, and no interval decides."""
IGNORED, HALF, FOLLOWED = 0.25, 0.5, 0.75
"""D_i below the first and above the last of these shares of the base LLM's: the instruction is ignored, or followed.
Above the middle one: a second measurement may confirm that it is followed."""
IGNORED_OF_CEILING, HALF_OF_CEILING, FOLLOWED_OF_CEILING = 0.05, 0.10, 0.15
"""The same as shares of the ceiling, where there is no base LLM."""
USED, USED_OF_CEILING = 0.3, 0.05
"""D_s below and above this share of the base LLM's, or of the ceiling: the speech is not used, or used."""
HEARD = 0.5
"""Word error rate below this share of what chance gives: the speech is understood."""
REPEATED = 50.0
"""A response with at most this word error rate against the transcript repeats the speech, per cent."""
MOST = 0.5
"""More than this share of the responses repeats the speech: most of them do."""
IN_FORM = 0.5
"""Share of responses in the asked-for form, above and below this part of the base LLM's (without one: this share)."""
MOST_REQUESTED = 500
"""More utterances than this are not asked for by number."""
_PARTNERS = 5
"""Other utterances that a transcription is compared with, to find the word error rate that chance gives."""
_REPETITIONS = frozenset({"transcription", "transcribe", "asr", "repetition", "repeat"})
"""Tasks whose right answer repeats the speech."""
_TO_REPEAT = re.compile(r"transcri|word for word|\brepeat\b|write down (what|the words|the speech|every word)", re.I)
"""Instructions whose right answer repeats the speech, where samples name no task."""


@dataclass(frozen=True)
class Distance:
    """How far a mean lies above a threshold, with its interval.

    Attributes:
        mean, low, high: above 0 where the number exceeds the threshold.
        n: independent utterances.
        carrier: a sample of the one utterance without which the mean would lie on the other side, or None.
    """

    mean: float
    low: float
    high: float
    n: int
    carrier: str | None = None

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above the threshold, and the utterances are enough for it to mean that."""
        return self.low > 0 and self.n >= FEWEST_UTTERANCES

    @property
    def below(self) -> bool:
        """The same below it."""
        return self.high < 0 and self.n >= FEWEST_UTTERANCES

    @property
    def is_open(self) -> bool:
        """Whether neither can be told."""
        return not self.above and not self.below

    def more_utterances(self) -> str:
        """About how many more utterances would move the interval off the threshold, if the mean stayed as it is."""
        reach = self.mean - self.low if self.mean > 0 else self.high - self.mean
        needed = math.inf if self.mean == 0 else self.n * (reach / abs(self.mean)) ** 2
        if not needed - self.n <= MOST_REQUESTED:  # also where there is no interval
            return f"more than {MOST_REQUESTED}"
        return str(max(1, math.ceil(needed - self.n)))


@dataclass(frozen=True)
class Finding:
    """A number and what it says.

    Attributes:
        evidence: the number, whose side is filled in when the verdict is known.
        supports, contradicts: verdicts that it speaks for and against.
        distances: how far it lies above its thresholds, by name.
    """

    evidence: Evidence
    supports: frozenset[VerdictName] = frozenset()
    contradicts: frozenset[VerdictName] = frozenset()
    distances: Mapping[str, Distance] = field(default_factory=dict)

    def __getitem__(self, threshold: str) -> Distance:
        return self.distances[threshold]


@dataclass(frozen=True)
class Reference:
    """What D_i or D_s is compared with.

    Attributes:
        values: the base LLM's of the same samples, or the ceiling, `[samples]`, nats per token.
        shares: the thresholds, as shares of `values`, by name.
        name: in words, such as `the base LLM's 0.45`.
        is_base: whether it is the base LLM, not the ceiling.
    """

    values: Values
    shares: Mapping[str, float]
    name: str
    is_base: bool


def n_utterances(result: MeasurementResult) -> int:
    return len(np.unique(result.clusters))


def answer_of(row: Mapping[str, Any]) -> str:
    """What a response says after its thinking, if there is any; an unfinished thought says nothing."""
    return str(row.get("answer", row.get("response", "")) or "").strip()


def empty_responses(result: MeasurementResult) -> list[str]:
    """Ids of the samples whose response says nothing, those among them that the measurement left out."""
    measured = [row["id"] for row in result.samples if not answer_of(row)]
    return measured + [each for reason in (EMPTY, UNFINISHED) for each in result.excluded.get(reason, [])]


def as_text(value: float | None) -> str:
    """Two decimals, three for small numbers."""
    if value is None or math.isnan(value):
        return "undefined"
    digits = 2 if abs(value) >= 0.1 or abs(value) < 0.0005 else 3
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 turns -0.0 into 0.0


# D_i and D_s on the checkpoint's own responses


@dataclass(frozen=True)
class OwnWords:
    """D_i and D_s on the checkpoint's own responses, compared with the base LLM's or with the ceiling.

    Attributes:
        own: the measurement; with a base LLM of the samples that both have.
        instruction, source: what the numbers say.
        base: the base LLM's own measurement of the same samples, or None.
        warnings: why a comparison is weaker than it looks.
    """

    own: SensitivityResult
    instruction: Finding
    source: Finding
    base: SensitivityResult | None
    warnings: Sequence[str]


def own_words(measured: MeasuredCheckpoint) -> OwnWords:
    """Reads the sensitivity on the checkpoint's own responses; `measured.own` must be there."""
    assert measured.own is not None
    own, base = _paired(measured.own.with_conventions(per="token"), measured.base_own)
    notes = []
    if measured.base_own is not None and base is None and measured.base_own.name != measured.own.name:
        notes.append("The base LLM was measured on other samples or instructions: its D_i and D_s are no reference.")
    references = []
    for which, letter in ((0, "D_i"), (1, "D_s")):
        reference, why_not = _reference(own, base, which)
        references.append(reference)
        if why_not:
            notes.append(f"The base LLM's own {letter} {why_not}: compared with the ceiling instead.")
    if base is None and measured.source == "speech" and not notes:
        notes.append("There is no base LLM: D_i and D_s are compared with their ceilings, which says less.")
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
    """Both on the samples that both have; without the base if it is the same model or was asked other things."""
    if base is None or base.name == own.name or base.conventions.instructions != own.conventions.instructions:
        return own, None
    if not set(own.ids) & set(base.ids):
        return own, None
    first, second = own.paired_with(base.with_conventions(per="token"))
    return first, second


def _reference(own: SensitivityResult, base: SensitivityResult | None, which: int) -> tuple[Reference, str]:
    """The reference, and why it is not the base LLM where there is one."""
    of_base = {"ignored": IGNORED, "half": HALF, "followed": FOLLOWED} if which == 0 else {"used": USED}
    ceiling = {"ignored": IGNORED_OF_CEILING, "half": HALF_OF_CEILING, "followed": FOLLOWED_OF_CEILING}
    of_ceiling = ceiling if which == 0 else {"used": USED_OF_CEILING}
    why_not = ""
    if base is not None:
        values = base.by_sample()[which]
        found = base.mean(values)
        if found.ci_low > 0:
            return Reference(values, of_base, f"the base LLM's {as_text(float(found.mean))}", True), ""
        why_not = f"is {_curve_text(found)}: it is not clearly above 0"
    most = own.ceilings()[which]
    return Reference(np.full(len(own.samples), most), of_ceiling, f"the ceiling of {as_text(most)}", False), why_not


def _distances(own: SensitivityResult, which: int, reference: Reference) -> dict[str, Distance]:
    values = own.by_sample()[which]
    return {name: _distance(own, values - share * reference.values) for name, share in reference.shares.items()}


def _distance(result: MeasurementResult, values: Values) -> Distance:
    found = result.mean(values)
    ends = (float(found.mean), float(found.ci_low), float(found.ci_high))
    return Distance(*ends, n_utterances(result), _carrier(result, values))


def _share_distance(result: MeasurementResult, shares: Values, threshold: float) -> Distance:
    found = result.share(shares)
    mean, low, high = (float(end) - threshold for end in (found.mean, found.ci_low, found.ci_high))
    return Distance(mean, low, high, n_utterances(result), _carrier(result, shares - threshold))


def _carrier(result: MeasurementResult, values: Values) -> str | None:
    sums = np.bincount(result.clusters, values)
    flips = np.flatnonzero(np.sign(sums.sum() - sums) != np.sign(sums.sum()))
    if len(sums) == 1 or not len(flips):
        return None
    return str(result.samples[int(np.flatnonzero(result.clusters == flips[0])[0])]["id"])


def _instruction_finding(own: SensitivityResult, distances: Mapping[str, Distance], reference: Reference) -> Finding:
    ignored, followed = distances["ignored"], distances["followed"]
    low, high = (f"{100 * reference.shares[name]:.0f} %" for name in ("ignored", "followed"))
    supports: frozenset[VerdictName] = frozenset()
    contradicts: frozenset[VerdictName] = frozenset()
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
        says, contradicts = f"above {low} of, and perhaps above {high} of", frozenset({IGNORES})
        supports = frozenset({FOLLOWS} if followed.mean > 0 else {BETWEEN})
    elif followed.below:
        says, contradicts = f"below {high} of, and perhaps below {low} of", frozenset({FOLLOWS})
        supports = frozenset({IGNORES} if ignored.mean < 0 else {BETWEEN})
    else:
        says = f"neither clearly above {low} of nor clearly below {high} of"
    evidence = _of_curve(
        own, own.instruction(), "instruction_sensitivity", "D_i, own responses", "nats per token", reference.name,
        f"How much the checkpoint's own responses depend on the instruction: {says} {reference.name}.",
    )  # fmt: skip
    return Finding(evidence, supports, contradicts, distances)


def _source_finding(own: SensitivityResult, used: Distance, reference: Reference, source: str) -> Finding:
    share = f"{100 * reference.shares['used']:.0f} %"
    what = "the speech" if source == "speech" else "the transcript"
    supports: frozenset[VerdictName] = frozenset()
    contradicts: frozenset[VerdictName] = frozenset()
    with_source: frozenset[VerdictName] = frozenset({FOLLOWS, IGNORES, BETWEEN})
    if used.above:
        says, supports, contradicts = f"above {share} of", with_source, frozenset({NO_SPEECH})
    elif used.below:
        says, supports, contradicts = f"below {share} of", frozenset({NO_SPEECH}), with_source
    else:
        says = f"neither clearly above nor clearly below {share} of"
    evidence = _of_curve(
        own, own.source(), "source_sensitivity", "D_s, own responses", "nats per token", reference.name,
        f"How much the checkpoint's own responses depend on {what}: {says} {reference.name}.",
    )  # fmt: skip
    return Finding(evidence, supports, contradicts, {"used": used})


# What the responses are: repetitions of the speech, answers in the asked-for form


def repetitions(own: OwnWords, tasks: Mapping[str, Task]) -> Finding | None:
    """The share of responses that repeat the speech; None without transcripts.

    Left out are samples where repeating is right: their task says so, the response has the asked-for form, or the base
    LLM's answer to the transcript repeats it too.
    """
    rows = [row for row in own.own.samples if row.get("text") and not _asks_to_repeat(row)]
    if own.base is not None:
        theirs = {row["id"]: answer_of(row) for row in own.base.samples}
        same = _repeat(rows, [theirs[row["id"]] for row in rows])
        rows = [row for row, repeats in zip(rows, same, strict=True) if not repeats]
    if not rows:
        return None
    repeats = [
        repeats and not _has_form(row, tasks)
        for row, repeats in zip(rows, _repeat(rows, [answer_of(row) for row in rows]), strict=True)
    ]
    result = own.own.subset([row["id"] for row in rows])
    shares = np.array(repeats, dtype=np.float64)
    most = _share_distance(result, shares, MOST)
    evidence = _of_curve(
        result, result.share(shares), "repeat_share", "share that repeats the speech", "", "0.50, most of them",
        f"{sum(repeats)} of {len(repeats)} responses to other instructions than transcription only repeat what was "
        f"said (word error rate at most {REPEATED:.0f} %).",
    )  # fmt: skip
    supports: frozenset[VerdictName] = frozenset({IGNORES} if most.above else {FOLLOWS} if most.below else ())
    contradicts: frozenset[VerdictName] = frozenset({FOLLOWS, NO_SPEECH}) if most.above else frozenset()
    return Finding(evidence, supports, contradicts, {"most": most})


def _asks_to_repeat(row: Mapping[str, Any]) -> bool:
    """Whether the right response repeats the speech, by the task, or by the words of an English instruction."""
    return row.get("task") in _REPETITIONS or _TO_REPEAT.search(row.get("instruction", "")) is not None


def _repeat(rows: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[bool]:
    """Whether each response repeats the transcript of its sample."""
    found = []
    for row, response in zip(rows, responses, strict=True):
        errors, words = _word_errors(row["text"], response, row.get("language"))
        found.append(bool(response) and words > 0 and 100 * errors <= REPEATED * words)
    return found


@lru_cache(maxsize=100_000)
def _word_errors(reference: str, response: str, language: str | None) -> tuple[float, float]:
    """Word errors of a response, and words of its reference. Kept, because normalising a text takes milliseconds."""
    with warnings.catch_warnings(action="ignore"):  # the evaluation warns of texts that are hard to score
        errors, words = word_error_rate([reference], [truncate(response)], [language]).counts[0]
    return float(errors), float(words)


def _has_form(row: Mapping[str, Any], tasks: Mapping[str, Task]) -> bool | None:
    """Whether the response has the asked-for form; None if none is asked for or it cannot be told."""
    task = tasks.get(row.get("task") or "")
    return task.parser()(answer_of(row)).follows if task is not None and task.has_form else None


def form(own: OwnWords, tasks: Mapping[str, Task]) -> Finding | None:
    """The share of responses in the asked-for form; None where no task asks for one that can be checked."""
    follows = _follows(own.own, tasks)
    theirs = _follows(own.base, tasks) if own.base is not None else {}
    if own.base is not None:  # where both can be told
        follows = {key: value for key, value in follows.items() if key in theirs}
    if not follows:
        return None
    result = own.own.subset(list(follows))
    shares = np.array(list(follows.values()), dtype=np.float64)
    label, text = "share in the asked-for form", f"{shares.sum():.0f} of {len(shares)} responses have the form"
    if own.base is None:
        # Nobody may be able to follow these instructions, so a low share says nothing.
        half = _share_distance(result, shares, IN_FORM)
        evidence = _of_curve(
            result, result.share(shares), "form_share", label, "", "nothing: there is no base LLM",
            f"{text} that the instruction asks for.",
        )  # fmt: skip
        in_form: frozenset[VerdictName] = frozenset({FOLLOWS}) if half.above else frozenset()
        return Finding(evidence, in_form, frozenset(), {"half": half} if half.above else {})
    base_shares = np.array([theirs[key] for key in follows], dtype=np.float64)
    evidence = _of_curve(
        result, result.share(shares), "form_share", label, "", f"the base LLM's {as_text(float(base_shares.mean()))}",
        f"{text} that the instruction asks for; of the base LLM's responses {base_shares.sum():.0f} have it.",
    )  # fmt: skip
    if base_shares.mean() < MOST:  # a form that the base LLM does not follow either says nothing
        return Finding(evidence)
    half = _share_distance(result, shares, IN_FORM * float(base_shares.mean()))
    supports: frozenset[VerdictName] = frozenset({FOLLOWS} if half.above else {IGNORES} if half.below else ())
    contradicts: frozenset[VerdictName] = frozenset({IGNORES} if half.above else {FOLLOWS} if half.below else ())
    return Finding(evidence, supports, contradicts, {"half": half})


def _follows(result: SensitivityResult, tasks: Mapping[str, Task]) -> dict[str, bool]:
    found = {row["id"]: _has_form(row, tasks) for row in result.samples}
    return {sample: follows for sample, follows in found.items() if follows is not None}


# Does it hear the speech at all?


def transcription(result: EvaluationResult | None) -> Finding | None:
    """The word error rate of a transcription instruction, compared with that of other utterances' transcripts."""
    if result is None:
        return None
    tasks = [task for task in result.tasks if "word_error_rate" in task.metrics]
    rows = [row for task in tasks for row in result.samples if row["task"] == task.name and row.get("reference")]
    if not rows:
        return None
    result = result.subset([row["id"] for row in rows])
    said = [text for task in tasks for text in Predictions(task, [r for r in rows if r["task"] == task.name]).responses]
    references, languages = [row["reference"] for row in rows], [row.get("language") for row in rows]
    own = np.array([_word_errors(*each) for each in zip(references, said, languages, strict=True)])
    by_chance = _errors_by_chance(references, said, languages, result.clusters)
    if by_chance is None or not own[:, 1].sum():
        return None
    words = own[:, 1].mean()
    rate = result.mean(100 * own[:, 0] / words).clipped(0, math.inf)
    chance = 100 * float(by_chance.mean() / words)
    heard = _distance(result, own[:, 0] - HEARD * by_chance)
    evidence = _of_curve(
        result, rate, "transcription_error", "word error rate", "%", f"{chance:.0f} % by chance",
        f"Asked to transcribe, it gets {rate.mean:.0f} % of the words wrong; against the transcripts of other "
        f"utterances the same responses get {chance:.0f} % wrong.",
    )  # fmt: skip
    if heard.below:
        return Finding(evidence, frozenset({FOLLOWS, IGNORES, BETWEEN}), frozenset({NO_SPEECH}), {"heard": heard})
    return Finding(evidence, frozenset({NO_SPEECH}) if heard.above else frozenset(), frozenset(), {"heard": heard})


def _errors_by_chance(
    references: Sequence[str], said: Sequence[str], languages: Sequence[str | None], clusters: NDArray[np.int64]
) -> Values | None:
    """Mean number of word errors of each response against the transcripts of other utterances, `[samples]`.

    The number of words is not needed: over all pairs it is that of the own transcripts. None if all say the same.
    """
    n = len(references)
    pairs: list[tuple[int, int]] = []
    for i in range(n):
        around = ((i + step) % n for step in range(1, n))
        others = (j for j in around if clusters[i] != clusters[j] and references[i] != references[j])
        pairs += [(i, j) for j in islice(others, _PARTNERS)]
    if len({i for i, _ in pairs}) < n:
        return None
    errors = [_word_errors(references[j], said[i], languages[j])[0] for i, j in pairs]
    own = np.array([i for i, _ in pairs])
    by_chance: Values = np.bincount(own, errors) / np.bincount(own)
    return by_chance


# Supporting measurements


def supporting(measured: MeasuredCheckpoint) -> list[Finding]:
    """Numbers that never decide: the base LLM's words, knockout, eta and alignment."""
    found = [*_base_words(measured.base_words), *_knockout(measured), _eta(measured), _alignment(measured)]
    return [each for each in found if each is not None]


def _base_words(result: SensitivityResult | None) -> list[Finding]:
    if result is None:
        return []
    findings = []
    parts = (("instruction", "D_i", result.instruction()), ("source", "D_s", result.source()))
    for which, letter, found in parts:
        evidence = _of_curve(
            result, found, f"{which}_sensitivity_base_words", f"{letter}, base LLM's responses", "nats per token",
            f"the ceiling of {as_text(result.ceilings()[which == 'source'])}",
            f"How much likelier the {which} makes the responses that the base LLM gives to the transcript; below 0 it "
            "makes them less likely.",
        )  # fmt: skip
        supports: frozenset[VerdictName] = frozenset({FOLLOWS}) if found.ci_low > 0 else frozenset()
        contradicts: frozenset[VerdictName] = frozenset({FOLLOWS}) if found.ci_high < 0 else frozenset()
        findings.append(Finding(evidence, supports, contradicts))
    return findings


def _knockout(measured: MeasuredCheckpoint) -> list[Finding]:
    result = measured.knockout
    if result is None:
        return []
    findings = []
    sides: dict[Segment, frozenset[VerdictName]] = {
        Segment.INSTRUCTION: frozenset({FOLLOWS}),
        Segment.SOURCE: frozenset({FOLLOWS, IGNORES, BETWEEN}),
    }
    for segment, verdicts in sides.items():
        found, name = result.fall_in_all_layers(segment), segment.name.lower()
        evidence = _of_curve(
            result, found, f"fall_without_{name}", f"fall without the {name}", "nats per token", "0, no effect",
            f"How much less likely the response is if it cannot attend to the {name} in any layer; the masked model is "
            "out of distribution, so this only supports other evidence.",
        )  # fmt: skip
        of_own = result.conventions.response == "generated"
        findings.append(Finding(evidence, verdicts if of_own and found.ci_low > 0 else frozenset()))
    return findings


def _eta(measured: MeasuredCheckpoint) -> Finding | None:
    result, control = measured.attention, measured.control
    if result is None:
        return None
    note = "A high eta is no sign of a good model: one that does not use the speech has a high eta too."
    compared_with = "nothing: there is no control of the base LLM at this source length"
    supports: frozenset[VerdictName] = frozenset()
    contradicts: frozenset[VerdictName] = frozenset()
    if control is not None and control.n_layers == result.n_layers and set(control.ids) & set(result.ids):
        result, control = result.paired_with(control)
        gap = result.mean(_last_sixth(result) - _last_sixth(control))
        theirs = float(_last_sixth(control).mean())
        compared_with = f"{as_text(theirs)} of the base LLM with its transcripts at the same length"
        below = gap.ci_high < 0
        where = "below" if below else "above" if gap.ci_low > 0 else "not clearly different from"
        note = f"It is {where} that of the base LLM at the same source length. {note}"
        supports, contradicts = (frozenset({IGNORES}), frozenset({FOLLOWS})) if below else (supports, contradicts)
    evidence = _of_curve(
        result, result.mean(_last_sixth(result)), "eta_last_sixth", "eta, last sixth of the layers", "", compared_with,
        f"The share of attention that the instruction gets, 0.5 if balanced. {note}",
    )  # fmt: skip
    return Finding(evidence, supports, contradicts)


def _last_sixth(result: AttentionResult) -> Values:
    """Eta of each sample, mean over the last sixth of the layers, `[samples]`."""
    instruction, source = result.scores()
    eta: Values = (instruction / (instruction + source))[:, layer_groups(result.n_layers)[-1]].mean(1)
    return eta


def _alignment(measured: MeasuredCheckpoint) -> Finding | None:
    result = measured.alignment
    if result is None:
        return None
    found, chance = result.curves()["retrieval"].at(-1), result.chance()
    evidence = _of_curve(
        result, found, "retrieval", "retrieval of the transcript", "", f"{as_text(chance)} by chance",
        "How often the speech is nearest to its own transcript in the last layer; it shows hearing, not following.",
    )  # fmt: skip
    heard: frozenset[VerdictName] = frozenset({FOLLOWS, IGNORES, BETWEEN}) if found.ci_low > chance else frozenset()
    return Finding(evidence, heard)


def _of_curve(
    result: MeasurementResult, found: Curve, key: str, label: str, unit: str, compared_with: str, text: str
) -> Evidence:
    n = n_utterances(result)
    value, low, high = (None if np.isnan(x) else float(x) for x in (found.mean, found.ci_low, found.ci_high))
    return Evidence(
        key=key, label=label, value=value, ci_low=low, ci_high=high, unit=unit, n_utterances=n,
        compared_with=compared_with, side="open", text=text,
    )  # fmt: skip


def _curve_text(found: Curve) -> str:
    if math.isnan(found.ci_low):
        return f"{as_text(float(found.mean))}, without an interval, which needs three utterances"
    return f"{as_text(float(found.mean))} [{as_text(float(found.ci_low))}, {as_text(float(found.ci_high))}]"
