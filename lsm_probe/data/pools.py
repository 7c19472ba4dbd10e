"""Instruction pools: YAML files of tasks and their wordings; each sample gets one wording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lsm_probe.data.sample import Words
from lsm_probe.data.seeded_hash import seeded_hash
from lsm_probe.errors import InputError
from lsm_probe.files import regular_file_bytes
from lsm_probe.formats import load_yaml

_LANGUAGE, _LABELS = "{language}", "{labels}"


class Task(BaseModel):
    """One task of a pool and the ways to ask for it.

    Attributes:
        task: its name.
        instructions: the wordings; `{language}` in one stands for a language, `{labels}` for the labels.
        languages: English names of the languages that `{language}` is drawn from.
        labels: the allowed answers, for tasks that select a label.
        answer: the source of targets when data is generated: the LLM, or the transcript itself (ground truth).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Words
    instructions: Annotated[list[Words], Field(min_length=1)]
    languages: list[Words] = []
    labels: list[Words] = []
    answer: Literal["llm", "transcript"] = "llm"

    @model_validator(mode="after")
    def _placeholders_can_be_filled(self) -> Task:
        for instruction in self.instructions:
            if (_LANGUAGE in instruction) != bool(self.languages):
                raise ValueError(f"{instruction!r}: {_LANGUAGE} and the list 'languages' go together")
            if (_LABELS in instruction) != bool(self.labels):
                raise ValueError(f"{instruction!r}: {_LABELS} and the list 'labels' go together")
        return self

    def fill(self, number: int, language: str | None = None) -> str:
        """Wording `number` with its placeholders filled in; `language` is the requested language of the answer, if
        any."""
        labels = ", ".join(repr(label) for label in self.labels)
        return self.instructions[number].replace(_LANGUAGE, language or "").replace(_LABELS, labels)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = ""
    tasks: Annotated[list[Task], Field(min_length=1)]


@dataclass(frozen=True)
class Assignment:
    """The task and instruction that a pool assigns to a sample."""

    task: str
    instruction: str  # the wording, filled in
    instruction_id: str  # its name in the pool: task, language if one was drawn, number of the wording
    language: str | None  # English name of the requested language, None if the task has none
    answer: Literal["llm", "transcript"]


@dataclass(frozen=True)
class Pool:
    """Tasks; each sample is assigned one of them."""

    tasks: tuple[Task, ...]

    def only(self, names: Sequence[str]) -> Pool:
        """The pool with only these tasks, in the pool's order, because assignments depend on the order.

        Raises:
            InputError: a name is not in the pool.
        """
        known = [task.task for task in self.tasks]
        for name in names:
            if name not in known:
                raise InputError(f"task {name!r} is not in the instruction pool; it has: {', '.join(known)}")
        return Pool(tuple(task for task in self.tasks if task.task in names))

    def assign(self, seed: int, sample_id: str, *, language: str | None = None) -> Assignment:
        """Assigns a task, then its language if it has more than one, then a wording.

        Each choice is a hash of (seed, sample id), so it does not depend on other samples, their order or the process.
        If `language` is given, it is used instead of a draw.
        """
        task = self.tasks[seeded_hash(seed, "task", sample_id) % len(self.tasks)]
        if language is None and task.languages:
            language = task.languages[seeded_hash(seed, "language", sample_id) % len(task.languages)]
        elif not task.languages:
            language = None
        number = seeded_hash(seed, "instruction", sample_id) % len(task.instructions)
        name = "/".join([task.task, *([language] if language else []), str(number)])
        return Assignment(task.task, task.fill(number, language), name, language, task.answer)


def builtin_pools() -> list[str]:
    """Names of the pools in the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def read_pool(*sources: str | Path) -> Pool:
    """Reads and joins pools: a task in several pools gets the wordings of all of them.

    Args:
        sources: a name of [`builtin_pools`], or the path of a YAML file of the same shape.

    Raises:
        InputError: a file cannot be read, is not a pool, holds no task or a task without a wording; names file and
            place.
    """
    joined: dict[str, Task] = {}
    for source in sources:
        for task in _read(source).tasks:
            earlier = joined.get(task.task)
            joined[task.task] = task if earlier is None else _join(earlier, task, source)
    return Pool(tuple(joined.values()))


def _read(source: str | Path) -> _File:
    path = _folder() / f"{source}.yaml" if str(source) in builtin_pools() else Path(source)
    try:
        regular_file_bytes(path)
        content: Any = load_yaml(path.read_bytes())
    except InputError as error:
        known = ", ".join(builtin_pools())
        raise InputError(f"--instructions {error}; built in are: {known}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"instruction file {path} cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict) or not content.get("tasks"):
        raise InputError(f"instruction file {path} holds no tasks; write a list 'tasks', as in the built-in files")
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise InputError(f"instruction file {path}: {_explain(error, content)}") from None
    names = [task.task for task in file.tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"instruction file {path}: task {name!r} occurs twice; join its instructions")
    return file


def _explain(error: ValidationError, content: dict[str, Any]) -> str:
    """The first thing wrong with a pool, by task name where it has one."""
    first = error.errors(include_url=False)[0]
    place = list(first["loc"])
    if len(place) > 1 and place[0] == "tasks":
        entry = content["tasks"][place[1]]
        name = entry.get("task") if isinstance(entry, dict) else None
        place[:2] = [f"task {name!r}" if name else f"task number {int(place[1]) + 1}"]
    if place[-1:] == ["instructions"] and first["type"] in ("missing", "too_short", "list_type"):
        return f"{place[0]} has no instructions; list one or more"
    what = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
    if first["type"] == "string_type" and isinstance(first["input"], int | float):
        what = f"{first['input']!r} is not text; put it in quotes"
    return f"{', '.join(str(part) for part in place)}: {what}"


def _join(one: Task, other: Task, source: str | Path) -> Task:
    if (one.languages, one.labels, one.answer) != (other.languages, other.labels, other.answer):
        raise InputError(
            f"--instructions {source}: task {one.task!r} has other languages, labels or answer than in the pool "
            "before it; give it another name"
        )
    return one.model_copy(update={"instructions": [*one.instructions, *other.instructions]})


def _folder() -> Path:
    return Path(str(resources.files("lsm_probe") / "data" / "instructions"))
