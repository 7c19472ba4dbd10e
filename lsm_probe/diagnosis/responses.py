"""Checks of responses: empty ones, repetitions of the speech, and the requested format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lsm_probe.diagnosis.evidence import (
    FOLLOWS,
    IGNORES,
    NO_SPEECH,
    NO_VERDICT,
    Finding,
    Verdicts,
    as_text,
    number,
    share_distance,
)
from lsm_probe.diagnosis.own_words import OwnWords
from lsm_probe.diagnosis.word_errors import word_errors
from lsm_probe.evaluation.task import Task
from lsm_probe.models.thinking import UNFINISHED
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.runner.exclusions import EMPTY
from lsm_probe.runner.result import MeasurementResult

REPEATED = 50.0
"""A response repeats the speech if its word error rate is at most this, per cent."""
MOST = 0.5
"""Most responses repeat the speech if their share is above this."""
MANY = 0.25
"""A checkpoint with a larger share of responses that repeat the speech does not follow the instruction."""
IN_FORM = 0.5
"""Threshold for the share of responses in the requested format, relative to the base LLM's (or absolute, without
one)."""
_REPETITIONS = frozenset({"transcription", "transcribe", "asr", "repetition", "repeat"})
"""Tasks whose right answer repeats the speech."""
_TO_REPEAT = re.compile(r"transcri|word for word|\brepeat\b|write down (what|the words|the speech|every word)", re.I)
"""Instructions whose right answer repeats the speech, where samples name no task."""


def answer_of(row: Mapping[str, Any]) -> str:
    """The part of a response after its thinking, if there is any; empty if the thinking is unfinished."""
    return str(row.get("answer", row.get("response", "")) or "").strip()


def empty_responses(result: MeasurementResult) -> list[str]:
    """Ids of the samples with an empty response, including those that the measurement left out."""
    measured = [row["id"] for row in result.samples if not answer_of(row)]
    return measured + [each for reason in (EMPTY, UNFINISHED) for each in result.excluded.get(reason, [])]


def repetitions(own: OwnWords, repeats: Mapping[str, bool], said: Mapping[str, str]) -> Finding | None:
    """The share of responses that repeat the speech; None without transcripts.

    Args:
        own: the responses.
        repeats: what [`find_repetitions`] found.
        said: transcript -> the checkpoint's own transcription of that speech.
    """
    if not repeats:
        return None
    result = own.own.subset(list(repeats))
    shares = np.array(list(repeats.values()), dtype=np.float64)
    most, many = share_distance(result, shares, MOST), share_distance(result, shares, MANY)
    references = "the transcript or the checkpoint's own transcription" if said else "the transcript"
    evidence = number(
        result, result.share(shares), "repeat_share", "share that repeats the speech", "",
        "the thresholds 0.25 and 0.50",
        f"{shares.sum():.0f} of {len(shares)} responses to instructions other than transcription only repeat the "
        f"speech (word error rate at most {REPEATED:.0f} % against {references}).",
    )  # fmt: skip
    supports: Verdicts = frozenset({IGNORES} if most.above else {FOLLOWS} if many.below else ())
    contradicts: Verdicts = frozenset({FOLLOWS, NO_SPEECH} if most.above else {FOLLOWS} if many.above else ())
    return Finding(evidence, supports, contradicts, {"most": most, "many": many})


def find_repetitions(own: OwnWords, tasks: Mapping[str, Task], said: Mapping[str, str]) -> dict[str, bool]:
    """Whether each response repeats the speech, by sample id.

    Samples for which repeating is right are left out: the task says so, or the base LLM also repeats the transcript. A
    response in the requested format is no repetition.

    Args:
        own: the responses.
        tasks: the tasks with a format that can be checked, by name.
        said: transcript -> the checkpoint's own transcription of that speech. A checkpoint that mishears many words
            repeats what it hears, which may differ from the transcript.
    """
    rows = [row for row in own.own.samples if row.get("text") and not _asks_to_repeat(row)]
    theirs = {} if own.base is None else {row["id"]: row for row in own.base.samples}
    return {
        row["id"]: _repeats(row, {row["text"], said.get(row["text"], "")}) and not _has_form(row, tasks)
        for row in rows
        if row["id"] not in theirs or not _repeats(theirs[row["id"]], {row["text"]})
    }


def _asks_to_repeat(row: Mapping[str, Any]) -> bool:
    """Whether the right response repeats the speech, according to the task or to the words of an English
    instruction."""
    return row.get("task") in _REPETITIONS or _TO_REPEAT.search(row.get("instruction", "")) is not None


def _repeats(row: Mapping[str, Any], spoken: Iterable[str]) -> bool:
    """Whether the response repeats one of these texts."""
    response = answer_of(row)
    errors = [word_errors(text, response, row.get("language")) for text in spoken]
    return bool(response) and any(words > 0 and 100 * wrong <= REPEATED * words for wrong, words in errors)


def _has_form(row: Mapping[str, Any], tasks: Mapping[str, Task]) -> bool | None:
    """Whether the response has the requested format; None if no format is requested or it cannot be checked."""
    task = tasks.get(row.get("task") or "")
    return task.parser()(answer_of(row)).follows if task is not None and task.has_form else None


def form(own: OwnWords, tasks: Mapping[str, Task]) -> Finding | None:
    """The share of responses in the requested format; None if no task asks for a format that can be checked."""
    follows = _follows(own.own, tasks)
    theirs = _follows(own.base, tasks) if own.base is not None else {}
    if own.base is not None:  # samples that can be checked for both
        follows = {key: value for key, value in follows.items() if key in theirs}
    if not follows:
        return None
    result = own.own.subset(list(follows))
    shares = np.array(list(follows.values()), dtype=np.float64)
    label, text = "share in the asked-for form", f"{shares.sum():.0f} of {len(shares)} responses have the form"
    if own.base is None:
        # Perhaps no model can follow these instructions, so a low share is not evidence.
        half = share_distance(result, shares, IN_FORM)
        evidence = number(
            result, result.share(shares), "form_share", label, "", "nothing: there is no base LLM",
            f"{text} that the instruction asks for.",
        )  # fmt: skip
        in_form: Verdicts = frozenset({FOLLOWS}) if half.above else NO_VERDICT
        return Finding(evidence, in_form, frozenset(), {"half": half} if half.above else {})
    base_shares = np.array([theirs[key] for key in follows], dtype=np.float64)
    evidence = number(
        result, result.share(shares), "form_share", label, "", f"the base LLM's {as_text(float(base_shares.mean()))}",
        f"{text} that the instruction asks for; {base_shares.sum():.0f} of the base LLM's responses have it.",
    )  # fmt: skip
    if base_shares.mean() < MOST:  # the base LLM does not follow the format either, so this is not evidence
        return Finding(evidence)
    half = share_distance(result, shares, IN_FORM * float(base_shares.mean()))
    supports: Verdicts = frozenset({FOLLOWS} if half.above else {IGNORES} if half.below else ())
    contradicts: Verdicts = frozenset({IGNORES} if half.above else {FOLLOWS} if half.below else ())
    return Finding(evidence, supports, contradicts, {"half": half})


def _follows(result: SensitivityResult, tasks: Mapping[str, Task]) -> dict[str, bool]:
    found = {row["id"]: _has_form(row, tasks) for row in result.samples}
    return {sample: follows for sample, follows in found.items() if follows is not None}
