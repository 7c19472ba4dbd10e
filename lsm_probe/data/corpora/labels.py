"""The labels of the evaluation instructions: the only right answers of a task that selects a label."""

from __future__ import annotations

from functools import cache

from lsm_probe.data.pools import read_pool
from lsm_probe.data.utterance import label_answer
from lsm_probe.errors import InputError


@cache
def labels_of(task: str) -> tuple[str, ...]:
    return tuple(read_pool("evaluation").only([task]).tasks[0].labels)


def answer_with(task: str, label: str) -> dict[str, str]:
    """The answers of an utterance with this label.

    Raises:
        InputError: the label is none of the task's.
    """
    if label not in labels_of(task):
        raise InputError(f"{label!r} is none of the labels of task {task!r}; correct it, or check the corpus's release")
    return {task: label_answer(label)}
