"""Load the results of each arm: one folder per seed, measurement and checkpoint.

They come from `results.tar.xz`, and those on more utterances from `more_utterances.tar.xz`. Intervals are computed over
sentences: the same sentence in another voice counts as the same utterance.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tarfile
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lsm_probe
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.metrics import Metric
from lsm_probe.evaluation.scoring import FOLLOWING
from lsm_probe.intervals import number_clusters
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.runner.result import Curve

HERE = Path(__file__).parent
MORE = "more"
"""Used instead of a seed for the measurements of seed 0 on more utterances."""
OF_DIAGNOSIS = {"own-words": "sensitivity", "evaluation": "transcription"}
"""Name of a measurement here -> name in `lsm-probe diagnose`, which measured more utterances."""
LLM = "builtin:llm"
CASCADE = "builtin:whisper + builtin:llm"
ARMS = ("untrained", "vanilla_asr", "true_answers", "self_powered_one", "self_powered")

FOLLOWED = ("sentiment", "german", "french", "spanish")
"""Tasks that SmolLM2 answers in the asked-for form when it gets the transcript."""
UNSEEN = ("french", "spanish")
"""Those of them that no arm was trained on."""
FAR = ("hashtags", "program")
"""Tasks of `builtin:commands` whose instructions are unlike those in the training of any arm."""
NOT_GERMAN = ("sentiment", "french", "spanish")
"""Those of them that `self_powered_one` was not trained on."""
MOOD = ("sentiment",)
"""The only one of them with a correct answer: SmolLM2's answer to the transcript."""
TRUE = ("commands-place", "commands-intent", "commands-capitals")
"""Tasks of `true_answers`. SmolLM2 itself does not follow them: 0, 8 and 0 % correct."""


@cache
def results() -> Path:
    """The folder `results` of the archives, unpacked once; it is deleted when Python exits."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    for archive in sorted(HERE.glob("*.tar.xz")):
        with tarfile.open(archive) as packed:
            packed.extractall(Path(folder) / archive.name.split(".")[0], filter="data")
    found = Path(folder) / "results" / "results"
    if has_more():
        (Path(folder) / "more_utterances" / "results").rename(found / MORE)
    return found


def has_more() -> bool:
    """Whether the measurements on more utterances exist; they take an hour on one thread."""
    return (HERE / "more_utterances.tar.xz").exists()


def seeds() -> list[str]:
    return sorted(folder.name for folder in results().iterdir() if folder.name != MORE)


@cache
def measured(seed: str, part: str) -> dict[str, Any]:
    """Results of a measurement, by name of an arm (without its seed), of the LLM or of the cascade."""
    folder = OF_DIAGNOSIS.get(part, part) if seed == MORE else part
    found = lsm_probe.read_results([results() / seed / folder])
    return {_arm(each.name, seed): by_sentence(each) for _, group in found.measured() for each in group}


def _arm(name: str, seed: str) -> str:
    shipped = name.removeprefix("builtin:")
    return shipped if shipped in ARMS else name.removesuffix(f"-{seed}")


def by_sentence(result: Any) -> Any:
    """The result with intervals over sentences: all voices of a sentence form one cluster."""
    return replace(result, clusters=number_clusters([sample["text"] for sample in result.samples]))


def at_length(seed: str, part: str) -> AttentionResult:
    """The length-matched text LLM. All arms have the same number of speech tokens and share one control."""
    return next(result for result in measured(seed, part).values() if result.is_control)


def alignment_change(seed: str, number: str, first: str, second: str) -> Curve:
    """`second` minus `first` in the last state, as `comparison.json` has it (the states themselves are 70 MB)."""
    content = json.loads((results() / seed / "alignment" / "comparison.json").read_text(encoding="utf-8"))
    names = {"first": f"{first}-{seed}", "second": f"{second}-{seed}"}
    pair = next(pair for pair in content["pairs"] if names.items() <= pair.items())
    return Curve(*(np.array(values[-1]) for values in pair[f"{number}_difference"].values()))


def alignment(seed: str, arm: str, number: str) -> float:
    """A number of the last state."""
    content = json.loads((results() / seed / "alignment" / f"{arm}-{seed}" / "result.json").read_text(encoding="utf-8"))
    return float(content[number]["mean"][-1])


def following(result: EvaluationResult, tasks: tuple[str, ...]) -> NDArray[np.float64]:
    """Whether each response has the asked-for form, `[samples]`: 1, or 0 (also if this is unknown)."""
    return _by_sample(result, tasks, FOLLOWING)


def right(result: EvaluationResult, tasks: tuple[str, ...]) -> NDArray[np.float64]:
    """Whether each response has the asked-for form and is correct, 1 or 0, `[samples]`."""
    return _by_sample(result, tasks, "accuracy")


def transcription(result: EvaluationResult) -> tuple[EvaluationResult, Metric]:
    """The result on the transcription task, and its word error rate."""
    name = next(task.name for task in result.tasks if "transcription" in task.name)
    result = only(result, (name,))
    return result, result.metrics()[name]["word_error_rate"]


def only(result: EvaluationResult, tasks: tuple[str, ...]) -> EvaluationResult:
    """The result restricted to some tasks, in their order."""
    return result.subset([row["id"] for task in tasks for row in result.samples if row["task"] == task])


def _by_sample(result: EvaluationResult, tasks: tuple[str, ...], metric: str) -> NDArray[np.float64]:
    return np.concatenate([result.metrics()[task][metric].counts[:, 0] for task in tasks])


def importance_depth(result: ImportanceResult) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The importance-weighted mean layer, and the same without each utterance in turn, `[utterances]`."""
    layers = np.array([-1 if p["layer"] is None or len(p["shape"]) < 2 else p["layer"] for p in result.parameters])
    by_layer = np.stack([result.sums[:, layers == layer].sum(1) for layer in range(result.n_layers)], 1)
    numbers = np.arange(result.n_layers)

    def centre(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums @ numbers / sums.sum(-1)

    return centre(by_layer.mean(0)), centre(result.leave_one_out(by_layer))
