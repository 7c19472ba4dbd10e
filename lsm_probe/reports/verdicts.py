"""From results to verdicts: what was measured of each checkpoint, put together and judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.diagnosis.rules import judge
from lsm_probe.diagnosis.verdict import Verdict
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.task import Task, builtin_tasks, read_task
from lsm_probe.languages import require_language
from lsm_probe.probes.attention.reference import text_at_length
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.reports.collection import Results, is_measured_on, own_responses
from lsm_probe.runner.result import MeasurementResult

JUDGED = ("attention", "sensitivity", "knockout", "alignment", "evaluate")
"""Measurements on which a verdict is based."""


def find_verdicts(results: Results, base: str | None = None) -> list[Verdict]:
    """The verdict about each checkpoint of [`measured_checkpoints`], computed from the results.

    A `diagnosis.json` in their folders is not read: it may be older than they are.

    Example:
        ```python
        verdicts = find_verdicts(lsm_probe.read_results(["runs/diagnosis"]))
        print([(each.checkpoint, each.verdict) for each in verdicts])
        ```
    """
    return [_with_data_warning(judge(measured), measured) for measured in measured_checkpoints(results, base)]


def measured_checkpoints(results: Results, base: str | None = None) -> list[MeasuredCheckpoint]:
    """What was measured of each checkpoint, in the order of the report.

    By default the base LLM is the first text LLM among the results. Length-matched controls and cascades are no
    checkpoints of their own, nor are checkpoints of which only measurements outside [`JUDGED`] are present. A
    measurement on the reference responses, or with a pool of paraphrases, is left out: no rule speaks of it.
    Sensitivity is per token.
    """
    base, own = base or base_llm(results), own_responses(results.groups)
    tasks = [each for each in _all_sensitivity(results) if each.conventions.pool == "tasks"]
    sensitivity = [each.with_conventions(per="token") for each in tasks]
    shown = []
    for name, first in _first_results(results).items():

        def on_responses_of(whose: str | None, group: Iterable[Any], name: str | None = name) -> Any:
            """The result of a checkpoint in a group that was measured on the responses of another."""
            return next(
                (each for each in group if each.name == name and is_measured_on(each, own.get(whose or ""))), None
            )

        attention = on_responses_of(name, results.attention)
        base_attention = _named(results.attention, base)
        shown.append(
            MeasuredCheckpoint(
                name=name,
                source=first.checkpoint.source,
                attention=attention,
                control=None
                if attention is None or base_attention is None or name == base
                else text_at_length(results.attention, base_attention, attention),
                own=on_responses_of(name, sensitivity),
                base_words=None if name == base else on_responses_of(base, sensitivity),
                base_own=None if base is None else on_responses_of(base, sensitivity, base),
                knockout=on_responses_of(name, results.knockout),
                alignment=_named(results.alignment, name),
                transcription=_transcription(_named(results.evaluation, name)),
                tasks=_tasks_with_form(results, name),
            )
        )
    return shown


def base_llm(results: Results) -> str | None:
    """Name of the first text LLM among the results; None if there is none."""
    return next((name for name, each in _first_results(results).items() if each.checkpoint.source == "text"), None)


def _first_results(results: Results) -> dict[str, MeasurementResult]:
    """A result of each checkpoint that is judged, in the order of the report."""
    found: dict[str, MeasurementResult] = {}
    for each in (*(each for name in JUDGED for each in results.groups[name]), *results.own_words):
        if not each.is_control and each.checkpoint.cascade_of is None:
            found.setdefault(each.name, each)
    return found


def _all_sensitivity(results: Results) -> list[SensitivityResult]:
    """Those on own responses first: of the base LLM they are the same as those on shared ones."""
    return [*results.own_words, *results.sensitivity]


def _named(group: Sequence[Any], name: str | None) -> Any:
    return next((each for each in group if each.name == name), None)


def _transcription(result: EvaluationResult | None) -> EvaluationResult | None:
    """The part of an evaluation that has a word error rate: the task called a transcription, else the first such."""
    if result is None:
        return None
    rated = [task for task in result.tasks if task.metrics[0] == "word_error_rate"]
    rated.sort(key=lambda task: not task.name.endswith("transcription"))
    ids = [sample["id"] for sample in result.samples if rated and sample["task"] == rated[0].name]
    if not ids:
        return None
    return replace(result.subset(ids), conventions=replace(result.conventions, tasks=(rated[0],)))


def _tasks_with_form(results: Results, name: str) -> dict[str, Task]:
    """The built-in tasks that samples of this checkpoint belong to and whose form their instructions ask for.

    A manifest may use the name of a built-in task for another one, so the name alone does not decide.
    """
    measured = [each for group in (results.attention, _all_sensitivity(results)) for each in group if each.name == name]
    instructions: dict[str, set[str]] = {}
    for sample in (sample for each in measured for sample in each.samples):
        instructions.setdefault(str(sample.get("task")), set()).add(sample["instruction"])
    tasks = {task: read_task(task) for task in builtin_tasks() if task in instructions}
    return {
        task: found
        for task, found in tasks.items()
        if found.has_form and all(_names_the_form(instruction, found) for instruction in instructions[task])
    }


def _names_the_form(instruction: str, task: Task) -> bool:
    """Whether an instruction names the labels that may be answered, and the language to answer in."""
    named = [*task.labels, *([require_language(task.language).name] if task.language else [])]
    return all(word.casefold() in instruction.casefold() for word in named)


def _with_data_warning(verdict: Verdict, measured: MeasuredCheckpoint) -> Verdict:
    """Says if the measurements are on different samples; a part of the same ones is no other data."""
    results = dict(_measurements(measured))
    samples = {name: {*each.ids, *chain(*each.excluded.values())} for name, each in results.items()}
    most: set[str] = max(samples.values(), key=len, default=set())
    if all(own <= most for own in samples.values()) and len({each.data.name for each in results.values()}) < 2:
        return verdict
    listed = ", ".join(f"{name} on {each.data.name} ({each.counted})" for name, each in results.items())
    warning = f"The measurements of {measured.name} are on different samples: {listed}."
    return replace(verdict, warnings=[*verdict.warnings, warning])


def _measurements(measured: MeasuredCheckpoint) -> Iterator[tuple[str, MeasurementResult]]:
    for name in ("attention", "own", "base_words", "knockout", "alignment"):
        if (result := getattr(measured, name)) is not None:
            yield (
                {"own": "sensitivity", "base_words": "sensitivity on the base LLM's responses"}.get(name, name),
                result,
            )
