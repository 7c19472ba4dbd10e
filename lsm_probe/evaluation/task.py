"""Evaluation tasks: small YAML files that define the samples, how a response is parsed, and how it is scored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lsm_probe.data.manifest import explain, read_manifest
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import OnError
from lsm_probe.data.sample import Sample, Words
from lsm_probe.errors import InputError
from lsm_probe.evaluation import answers
from lsm_probe.evaluation.answers import Parser
from lsm_probe.files import regular_file_bytes
from lsm_probe.formats import load_yaml
from lsm_probe.languages import require_language

MetricName = Literal[
    "word_error_rate",
    "word_error_rate_macro",
    "bleu",
    "accuracy",
    "accuracy_lenient",
    "f1_micro",
    "f1_macro",
    "answer_contained",
    "bert_score",
]

_NAMED = re.compile(r"(.*\.ya?ml|[^=]*)(?:=(.+))?.*", re.DOTALL)
"""A task, optionally with its manifest; the path of a task file may contain `=`."""


class Task(BaseModel):
    """One task.

    Attributes:
        name: the name of its file; a column of the table.
        title: its name in tables.
        manifest: default location of its samples: relative to the folder of the manifests, or to that of the task's
            file.
        instruction: replaces the manifest's own instruction in every sample; `{labels}` in it stands for the labels.
        answer: the requested format of the response; the functions of `evaluation.answers` define when a response
            follows.
        labels: the allowed labels; `pool/task` in the file takes them from an instruction pool.
        number: the requested number of keywords.
        language: of references and responses; the target of a translation. By default that of each sample's speech.
        metrics: the first is the one that the table shows. The share of responses in the requested format is added
            automatically, unless any text follows.
        read: the scored part of a reasoning model's response: `after_thinking`, only the answer, or `all` of it. Under
            `after_thinking`, a response that ends before its thinking does counts as no answer.
        bert_model: model of `bert_score`, a hub name or a folder.
        bert_layer: the layer that is compared; by default the one that the library recommends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Words
    title: Words
    manifest: Path | None = None
    instruction: Words | None = None
    answer: Literal["text", "label", "keywords", "true_false", "translation", "capitals"] = "text"
    labels: tuple[Words, ...] = ()
    number: Annotated[int, Field(ge=1)] | None = None
    language: Words | None = None
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)]
    read: Literal["after_thinking", "all"] = "after_thinking"
    bert_model: Words = "roberta-large"
    bert_layer: int | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_of_pool(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        pool, _, task = given.rpartition("/")
        if not pool:
            raise ValueError(f"are {given!r}; write them as a list, or as pool/task to take those of a pool")
        try:
            return read_pool(pool).only([task]).tasks[0].labels
        except InputError as error:
            raise ValueError(f"are {given!r}: {str(error).removeprefix('--instructions ')}") from error

    @field_validator("language")
    @classmethod
    def _language_exists(cls, given: str | None) -> str | None:
        if given is not None:
            try:
                require_language(given)
            except InputError as error:
                raise ValueError(str(error)) from None
        return given

    @model_validator(mode="after")
    def _fits(self) -> Task:
        wants = {"label": ["labels"], "keywords": ["labels", "number"], "translation": ["language"]}
        for key in wants.get(self.answer, []):
            if not getattr(self, key):
                raise ValueError(f"answer {self.answer!r} needs {key!r}; add it")
        if "bleu" in self.metrics and self.language is None:
            raise ValueError("metric 'bleu' needs 'language'; add it")
        for metric in ("f1_micro", "f1_macro"):
            if metric in self.metrics and self.answer != "label":
                raise ValueError(f"metric {metric!r} needs answer 'label', not {self.answer!r}; change one of them")
        if "{labels}" in (self.instruction or "") and not self.labels:
            raise ValueError("the instruction says {labels} and there are none; add 'labels'")
        try:
            self.parser()
        except InputError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def has_form(self) -> bool:
        """Whether the instruction requests a format that a response can miss."""
        return self.answer != "text"

    def parser(self) -> Parser:
        """The parser of both responses and references."""
        if self.answer == "label":
            return answers.label(self.labels)
        if self.answer == "keywords":
            assert self.number is not None
            return answers.keywords(self.labels, self.number)
        if self.answer == "translation":
            assert self.language is not None
            return answers.language(self.language)
        plain = {"text": answers.text, "true_false": answers.true_false, "capitals": answers.capitals}
        return plain[self.answer]

    def prepare(self, sample: Sample) -> Sample:
        """The sample as used in a prompt: its context after the instruction, id and task of this task."""
        instruction = sample.instruction
        if self.instruction is not None:
            instruction = self.instruction.replace("{labels}", ", ".join(repr(label) for label in self.labels))
        if sample.context is not None:
            instruction = f"{instruction}\nCONTEXT: {sample.context}"
        update = {"id": f"{self.name}/{sample.id}", "task": self.name, "instruction": instruction, "context": None}
        return sample.model_copy(update=update)


def builtin_tasks() -> list[str]:
    """Names of the tasks in the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def read_tasks(
    names: Sequence[str],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    on_error: OnError = "fail",
) -> tuple[list[Task], list[Sample]]:
    """Reads tasks with their samples.

    Args:
        names: a name of [`builtin_tasks`] or the path of a YAML file of the same shape each; with `=MANIFEST` after it
            the task takes its samples from there.
        data: the folder that the tasks' own manifests are in, as `lsm-probe data NAME --out FOLDER/NAME` leaves them;
            by default the current one for built-in tasks, and that of the file for others.
        limit: only the first samples of each task.
        on_error: at lines of a manifest that are unusable: "fail", or "skip" them with a warning.

    Returns:
        The tasks, and the samples of all of them, ready to be put to a checkpoint.

    Raises:
        InputError: a task does not exist (the message names the nearest), is given twice or cannot be read, or its
            manifest cannot be read.
    """
    tasks: list[Task] = []
    samples: list[Sample] = []
    for given in names:
        name, manifest = _NAMED.fullmatch(given).groups()  # type: ignore[union-attr]  # it fits anything
        task, folder = _read(name)
        if task.name in [other.name for other in tasks]:
            raise InputError(f"task {task.name} is given twice; give the second a file, and so a name, of its own")
        if not manifest and task.manifest is None:
            raise InputError(f"task {task.name} names no manifest; give it as {task.name}=MANIFEST")
        path = Path(manifest) if manifest else (folder if data is None else Path(data)) / (task.manifest or "")
        try:
            found = read_manifest(path, on_error=on_error)[:limit]
        except InputError as error:
            remedy = "" if manifest else f"; or give --data, the folder it is below, or {task.name}=MANIFEST"
            raise InputError(f"task {task.name}: {error}{remedy}") from None
        tasks.append(task)
        samples += [task.prepare(sample) for sample in found]
    return tasks, samples


def with_read(tasks: Sequence[Task], read: str | None) -> list[Task]:
    """The tasks, all with this setting of `read`; unchanged if it is None.

    Raises:
        InputError: the setting is unknown.
    """
    if read is None:
        return list(tasks)
    if read not in (allowed := get_args(Task.model_fields["read"].annotation)):
        raise InputError(f"--read {read!r} is unknown; choose one of: {', '.join(allowed)}")
    return [task.model_copy(update={"read": read}) for task in tasks]


def read_task(name: str) -> Task:
    """Reads the task of this name or file; see [`read_tasks`].

    Raises:
        InputError: the task does not exist or cannot be read.
    """
    return _read(name)[0]


def _read(name: str) -> tuple[Task, Path]:
    """The task, and the folder in which its manifest is searched."""
    if name in builtin_tasks():
        return _parse(_folder() / f"{name}.yaml"), Path()
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        near = get_close_matches(name, builtin_tasks(), n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(builtin_tasks())}; or give a YAML file"
        raise InputError(f"task {name!r} does not exist; {remedy}")
    return _parse(path), path.parent


def _parse(path: Path) -> Task:
    try:
        regular_file_bytes(path)
        content: Any = load_yaml(path.read_bytes())
    except InputError as error:
        raise InputError(f"task file {error}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"task file {path} cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict):
        raise InputError(f"task file {path} is not a table of settings; write `metrics: [...]` and so on")
    try:
        return Task.model_validate({"title": path.stem, **content, "name": path.stem})
    except ValidationError as error:
        raise InputError(f"task file {path}: {explain(error)}") from None


def _folder() -> Path:
    return Path(str(resources.files("lsm_probe") / "evaluation" / "tasks"))
