"""MMLU (Hendrycks et al. 2021) from a folder of CSV files, as tasks of lm-evaluation-harness.

The prompts are the harness's own: each task is its `mmlu_<subject>` from the installed version, with the hub's data set
replaced by local files. The groups of subjects are the harness's too; they differ from the original in one subject:
anatomy is in STEM, not in "other".
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypedDict

import yaml

from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError
from lsm_probe.extras import install_command
from lsm_probe.files import replacing

GROUPS = ("stem", "humanities", "social_sciences", "other")
SUBJECTS = 57
"""Number of subjects of MMLU."""
CHANCE = 25.0
"""Accuracy of random guessing, per cent."""
LETTERS = "ABCD"
_COLUMNS = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
_ANSWERS = {name: i for i in range(4) for name in (LETTERS[i], str(i))}


class Question(TypedDict):
    """A question as the harness's tasks read it; `answer` is the number of the right choice, from 0."""

    question: str
    choices: list[str]
    answer: int


@dataclass(frozen=True)
class Subject:
    """A subject of one of the `GROUPS`: its examples (`dev`), in order, and its questions (`test`)."""

    group: str
    dev: list[Question]
    test: list[Question]


@dataclass(frozen=True)
class Mmlu:
    """The questions of a folder by subject, sorted."""

    name: str
    subjects: dict[str, Subject]

    @property
    def questions(self) -> int:
        return sum(len(subject.test) for subject in self.subjects.values())

    def describe(self) -> DataIdentity:
        """The identity of the questions and examples, as stored in results."""
        content = {name: vars(subject) for name, subject in self.subjects.items()}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return DataIdentity(self.name, digest, self.questions)


def read_mmlu(folder: str | Path, *, questions: int | None = None) -> Mmlu:
    """Reads `dev/<subject>_dev.csv` and `test/<subject>_test.csv`; subjects may be missing.

    It reads two formats: the original release (no header, the answer a letter), and one with the header
    `question,choice0,...,choice3,answer` and answers numbered from 0.

    Args:
        questions: use only the first questions of each subject, as the harness's `--limit` does.

    Raises:
        InputError: the harness is not installed, or the folder has no such files, only one file of a subject, a subject
            that MMLU does not have, or a line that is not a question.
    """
    folder = Path(folder)
    files = {split: _files(folder / split, split) for split in ("dev", "test")}
    if not files["test"]:
        raise InputError(f"{folder} holds no test/<subject>_test.csv: give the folder that MMLU was unpacked into")
    for name in sorted({*files["dev"]} ^ {*files["test"]}):
        lacking = "dev" if name in files["test"] else "test"
        raise InputError(f"{folder} has no {lacking}/{name}_{lacking}.csv beside the other file of {name}: add it")
    known = _harness_tasks()
    for name in files["test"]:
        if name not in known:
            raise InputError(f"{files['test'][name]} is not a subject of MMLU: remove the file, or correct its name")
    subjects = {
        name: Subject(
            group=str(known[name]["tag"]).removeprefix("mmlu_").removesuffix("_tasks"),
            dev=_read(files["dev"][name]),
            test=_read(files["test"][name])[:questions],
        )
        for name in sorted(files["test"])
    }
    return Mmlu(folder.resolve().name, subjects)


def write_mmlu_tasks(mmlu: Mmlu, folder: str | Path) -> list[str]:
    """Writes the questions and a task file for each subject, for this package and for the harness's own command:

        lm_eval --model hf --model_args pretrained=MODEL --include_path FOLDER --tasks mmlu_anatomy --num_fewshot 5

    The task files refer to the data by absolute paths, so write them again if the folder moves. The harness also
    stores its converted data in this folder.

    Returns:
        The names of the tasks, in the order of the subjects.

    Raises:
        InputError: the harness is not installed.
    """
    folder = Path(folder).resolve()
    known = _harness_tasks()
    for name, subject in mmlu.subjects.items():
        files = {split: str(folder / "data" / f"{name}_{split}.jsonl") for split in ("dev", "test")}
        for split, file in files.items():
            with replacing(Path(file)) as path:
                lines = [json.dumps(question, ensure_ascii=False) for question in getattr(subject, split)]
                path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        source = {"data_files": files, "cache_dir": str(folder / "cache")}
        task = {**known[name], "dataset_path": "json", "dataset_kwargs": source}
        with replacing(folder / f"mmlu_{name}.yaml") as path:
            path.write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return [str(known[name]["task"]) for name in mmlu.subjects]


def _files(folder: Path, split: str) -> dict[str, Path]:
    """The files of a split by subject."""
    ending = f"_{split}.csv"
    return {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}


def _read(path: Path) -> list[Question]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row and row != _COLUMNS]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    if not rows:
        raise InputError(f"{path} holds no questions: unpack it again")
    questions: list[Question] = []
    for line, row in rows:  # number of the row's last line
        if len(row) != len(_COLUMNS) or row[-1].strip() not in _ANSWERS:
            raise InputError(
                f"{path}, line {line}: not a question, four choices and an answer (A to D, or 0 to 3): correct the line"
            )
        questions.append({"question": row[0], "choices": row[1:5], "answer": _ANSWERS[row[-1].strip()]})
    return questions


def _harness_tasks() -> dict[str, dict[str, Any]]:
    """The harness's own MMLU tasks by subject, without the location of their data."""
    try:
        folder = resources.files("lm_eval") / "tasks" / "mmlu" / "default"
    except ModuleNotFoundError as error:
        raise not_installed() from error
    shared = yaml.safe_load((folder / "_default_template_yaml").read_text(encoding="utf-8"))
    tasks = {}
    for path in folder.iterdir():
        if path.name.startswith("mmlu_") and path.name.endswith(".yaml"):
            own = yaml.safe_load(path.read_text(encoding="utf-8"))
            subject = own.pop("dataset_name")
            tasks[subject] = {**shared, **{key: value for key, value in own.items() if key != "include"}}
    return tasks


def not_installed() -> InputError:
    return InputError(
        f"MMLU needs lm-evaluation-harness (lm-eval), which is not installed: {install_command('evaluation')}"
    )
