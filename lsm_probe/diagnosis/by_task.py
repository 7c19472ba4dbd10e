"""D_i and repetitions for each task, because a mean over tasks can hide that some instructions are ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lsm_probe.diagnosis.evidence import n_utterances
from lsm_probe.diagnosis.own_words import OwnWords
from lsm_probe.diagnosis.responses import MOST
from lsm_probe.diagnosis.verdict import TaskNumbers

MOST_TASKS = 32
"""With more tasks there are no numbers by task: usually each sample then has an instruction of its own."""
FEWEST_RESPONSES = 3
"""With fewer responses, a task is not said to repeat the speech."""


def numbers_by_task(own: OwnWords, repeats: Mapping[str, bool]) -> list[TaskNumbers]:
    """The numbers of each task, the one with most samples first; empty if there is one task only, or too many.

    Samples without `task` count each instruction as a task.

    Args:
        own: D_i on the checkpoint's own responses.
        repeats: whether each response repeats the speech, by sample id.
    """
    ids: dict[str, list[str]] = {}
    for row in own.own.samples:
        ids.setdefault(row.get("task") or row["instruction"], []).append(row["id"])
    if not 1 < len(ids) <= MOST_TASKS:
        return []
    return [_numbers(own, task, ids[task], repeats) for task in sorted(ids, key=lambda task: -len(ids[task]))]


def _numbers(own: OwnWords, task: str, ids: list[str], repeats: Mapping[str, bool]) -> TaskNumbers:
    result = own.own.subset(ids)
    found = result.instruction()
    low, high = (None if np.isnan(end) else float(end) for end in (found.ci_low, found.ci_high))
    counted = [repeats[each] for each in ids if each in repeats]
    return TaskNumbers(
        task=task, n_utterances=n_utterances(result), d_i=float(found.mean), ci_low=low, ci_high=high,
        base_d_i=None if own.base is None else float(own.base.subset(ids).instruction().mean),
        repeats=sum(counted), responses=len(counted),
    )  # fmt: skip


def mostly_repeating(by_task: Sequence[TaskNumbers]) -> str:
    """The tasks for which most responses only repeat the speech, such as `title (4 of 6), items (2 of 3)`; or empty."""
    found = [each for each in by_task if each.responses >= FEWEST_RESPONSES and each.repeat_share > MOST]
    return ", ".join(f"{each.task} ({each.repeats} of {each.responses})" for each in found)
