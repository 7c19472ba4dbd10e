"""Write `claims.csv`: what separates the arms on natural recordings, in every seed.

    python analyses/open_speech/claims.py diagnosis analyses/open_speech/claims.csv

Each row is the difference of two checkpoints in one number and one seed, with its 95 % interval over the same
utterances. It **holds** if the interval lies on the stated side of 0 in every seed, **fails** if it lies on the other
side in every seed, and is **undecided** otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lsm_probe
from lsm_probe.evaluation.metrics import difference, word_error_rate
from lsm_probe.runner.result import Curve, curve

LLM = "builtin:llm"
LAST_SIXTH = slice(25, 30)
"""Layers."""

KINDS = {
    "attention": lsm_probe.AttentionResult,
    "sensitivity": lsm_probe.SensitivityResult,
    "transcription": lsm_probe.EvaluationResult,
}
Results = dict[str, dict[str, Any]]
"""Results by measurement and checkpoint."""


@dataclass(frozen=True)
class Claim:
    """`second` minus `first` lies on one side of 0; without `first`, `second` itself does."""

    key: str
    says: str
    number: str
    first: str | None
    second: str
    side: str


FREE = ("title", "german", "items")
"""Kinds of instruction that ask for words of one's own; the answers to the others are one word or the transcript."""

CLAIMS = [
    Claim("anchor", "`vanilla_asr` is below the text LLM", "D_i", LLM, "vanilla_asr", "below"),
    Claim("repair", "`self_powered` is above `vanilla_asr`", "D_i", "vanilla_asr", "self_powered", "above"),
    Claim("repair_one", "`one_instruction` is above `vanilla_asr`", "D_i", "vanilla_asr", "one_instruction", "above"),
    Claim("repair_true", "`true_answers` is above `vanilla_asr`", "D_i", "vanilla_asr", "true_answers", "above"),
    Claim("many", "`self_powered` is above `one_instruction`", "D_i", "one_instruction", "self_powered", "above"),
    Claim("own", "`self_powered` is above `true_answers`", "D_i", "true_answers", "self_powered", "above"),
    Claim("full", "`self_powered` is below the text LLM", "D_i", LLM, "self_powered", "below"),
    Claim("full_one", "`one_instruction` is below the text LLM", "D_i", LLM, "one_instruction", "below"),
    Claim("full_true", "`true_answers` is below the text LLM", "D_i", LLM, "true_answers", "below"),
    Claim("free", "`self_powered` is above `vanilla_asr`", "D_i, free answers", "vanilla_asr", "self_powered", "above"),
    Claim(
        "free_true",
        "`true_answers` is above `vanilla_asr`",
        "D_i, free answers",
        "vanilla_asr",
        "true_answers",
        "above",
    ),
    Claim(
        "free_own",
        "`self_powered` is above `true_answers`",
        "D_i, free answers",
        "true_answers",
        "self_powered",
        "above",
    ),
    *(
        Claim(f"hears_{arm}", f"`{arm}` is above 0", "D_s", None, arm, "above")
        for arm in ("vanilla_asr", "self_powered", "one_instruction", "true_answers")
    ),
    Claim("cost", "`self_powered` is above `vanilla_asr`", "word error rate", "vanilla_asr", "self_powered", "above"),
    Claim("eta", "`self_powered` is above `vanilla_asr`", "η", "vanilla_asr", "self_powered", "above"),
    Claim("eta_one", "`one_instruction` is above `vanilla_asr`", "η", "vanilla_asr", "one_instruction", "above"),
    Claim("eta_more", "`one_instruction` is above `self_powered`", "η", "self_powered", "one_instruction", "above"),
    Claim("eta_true", "`true_answers` is above `vanilla_asr`", "η", "vanilla_asr", "true_answers", "above"),
]


def main(diagnosis: Path, out: Path) -> None:
    results = read(diagnosis)
    seeds = sorted({name.rpartition("-")[2] for name in results["sensitivity"] if name != LLM})
    rows = [row for claim in CLAIMS for row in judged(claim, results, seeds)]
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.6f")


def read(diagnosis: Path) -> Results:
    found: Results = {}
    for measurement, kind in KINDS.items():
        folders = sorted(path.parent for path in (diagnosis / measurement).glob("*/result.json"))
        results = [kind.load(folder) for folder in folders]
        found[measurement] = {result.name: result for result in results}
    return found


def judged(claim: Claim, results: Results, seeds: list[str]) -> list[dict[str, Any]]:
    numbers = [NUMBERS[claim.number](results, _named(claim.first, seed), f"{claim.second}-{seed}") for seed in seeds]
    sides = {_side(number) for number in numbers}
    verdict = "undecided" if len(sides) > 1 or None in sides else "holds" if sides == {claim.side} else "fails"
    return [
        {"key": claim.key, "says": claim.says, "number": claim.number, "first": claim.first, "second": claim.second}
        | {"side": claim.side, "seed": seed, "mean": float(n.mean), "ci_low": float(n.ci_low)}
        | {"ci_high": float(n.ci_high), "verdict": verdict}
        for seed, n in zip(seeds, numbers, strict=True)
    ]


def _named(arm: str | None, seed: str) -> str | None:
    return arm if arm in (None, LLM) else f"{arm}-{seed}"


def _side(number: Curve) -> str | None:
    return "above" if number.ci_low > 0 else "below" if number.ci_high < 0 else None


def sensitivity(of: int, kinds: tuple[str, ...] | None = None) -> Callable[[Results, str | None, str], Curve]:
    """D_i (0) or D_s (1), nats per token of each checkpoint's own responses, over all kinds of instruction or some."""

    def measured(results: Results, first: str | None, second: str) -> Curve:
        found = results["sensitivity"]
        values = found[second].by_sample()[of]
        if first is not None:
            values = values - found[first].by_sample()[of]
        values = values[[kinds is None or sample["task"] in kinds for sample in found[second].samples]]
        return curve(values.mean(), (values.sum() - values) / (len(values) - 1))  # every sample is another clip

    return measured


def eta(results: Results, first: str | None, second: str) -> Curve:
    """Mean η of the last sixth of the layers."""
    after, before = results["attention"][second], results["attention"][first]
    mean = (after.eta().mean - before.eta().mean)[LAST_SIXTH].mean()
    return curve(mean, (after.left_out_eta() - before.left_out_eta())[:, LAST_SIXTH].mean(1))


def errors(results: Results, first: str | None, second: str) -> Curve:
    """Word error rate in percent."""
    samples = [results["transcription"][name].samples for name in (first, second)]
    rates = [word_error_rate([s["reference"] for s in each], [s["response"] for s in each]) for each in samples]
    score = difference(*rates, [s["id"] for s in samples[0]])
    return Curve(np.float64(score.value), np.float64(score.ci_low), np.float64(score.ci_high))


NUMBERS = {
    "D_i": sensitivity(0),
    "D_i, free answers": sensitivity(0, FREE),
    "D_s": sensitivity(1),
    "η": eta,
    "word error rate": errors,
}

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
