"""Write `ways.csv`: the same self-powered data with adapters, adapters with layer-wise rates, and full training.

    python analyses/open_speech/ways.py ways analyses/open_speech/ways.csv

The folder is that of `lsm-probe diagnose --quick`. Its subfolders `answers` and `sentences` are those of `lsm-probe
text-ability` on SmolLM2's answers to held-out transcripts, and on the second halves of held-out sentences. Each row is
the difference of a checkpoint from the one with adapters in the same seed (for the adapters themselves, from SmolLM2),
with its 95 % interval over the same clips or texts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claims import LLM, NUMBERS, Results, read

import lsm_probe
from lsm_probe.runner.result import Curve, curve

ADAPTERS, OTHERS = "self_powered", ("layerwise", "full")
TEXTS = ("answers", "sentences")


def main(folder: Path, out: Path) -> None:
    results = read(folder)
    for texts in TEXTS:
        stored = [lsm_probe.TextAbilityResult.load(path.parent) for path in (folder / texts).glob("*/result.json")]
        results[texts] = {each.name: each for each in stored}
    seeds = sorted(name.rpartition("-")[2] for name in results["sensitivity"] if name.startswith(ADAPTERS))
    rows = (row for seed in seeds for row in of_seed(results, seed))
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.6f", lineterminator="\n")


def of_seed(results: Results, seed: str) -> Iterator[dict[str, Any]]:
    adapters = f"{ADAPTERS}-{seed}"
    pairs = [(LLM, adapters), *((adapters, f"{other}-{seed}") for other in OTHERS)]
    for first, second in pairs:
        for name in ("D_i", "D_s", "η", "word error rate", *TEXTS):
            if first == LLM and name == "word error rate":
                continue  # the text LLM does not transcribe
            found = text(results[name], first, second) if name in TEXTS else NUMBERS[name](results, first, second)
            ends = {"mean": float(found.mean), "ci_low": float(found.ci_low), "ci_high": float(found.ci_high)}
            yield {"seed": seed, "first": first, "second": second, "number": name, **ends}


def text(results: dict[str, Any], first: str, second: str) -> Curve:
    """The change of the loss on these texts, nats per token."""
    after, before = (results[name].counts for name in (second, first))
    return curve(_rate(after)[0] - _rate(before)[0], _rate(after)[1] - _rate(before)[1])


def _rate(counts: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[np.float64, np.ndarray[Any, np.dtype[np.float64]]]:
    """Nats per token of all texts, and without each of them."""
    nats, tokens = counts.T
    return nats.sum() / tokens.sum(), (nats.sum() - nats) / (tokens.sum() - tokens)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
