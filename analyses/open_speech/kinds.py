"""Write `kinds.csv`: what training on some kinds of instruction does for the others.

    python analyses/open_speech/kinds.py each_kind analyses/open_speech/kinds.csv

The folder is that of `lsm-probe sensitivity` on the samples of `each_kind.py`. Each row is D_i of one checkpoint, own
responses, over the samples of one kind or group of kinds, and its difference from the arm that was trained on all
kinds, both with 95 % intervals over the same utterances. `repeats` is the number of responses that only repeat the
speech: at most half of their words differ from the transcript, or from the response of the model that all arms start
from, which transcribes. (For that model itself only the transcript counts.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from each_kind import GROUPS

import lsm_probe
from lsm_probe.diagnosis.word_errors import word_errors

ALL, START = "self_powered-0", "builtin:open_vanilla_asr"
"""The arm that was trained on all kinds, and the model that all arms start from."""


def main(folder: Path, out: Path) -> None:
    found = [lsm_probe.SensitivityResult.load(path.parent) for path in sorted(folder.glob("*/result.json"))]
    results = {each.name: each.with_conventions(per="token") for each in found}
    table = pd.DataFrame(row for name in results for row in rows(results, name))
    table.round(6).to_csv(out, index=False, lineterminator="\n")


def rows(results: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """A row for each group and each kind."""
    kinds = {task: (task,) for group in GROUPS.values() for task in group}
    for label, tasks in {**GROUPS, **kinds}.items():
        ids = [row["id"] for row in results[name].samples if row["task"] in tasks]
        own, reference = (results[each].subset(ids) for each in (name, ALL))
        values = own.by_sample()[0]
        change = own.mean(values - reference.by_sample()[0])
        yield {
            "checkpoint": name,
            "asked": label,
            "utterances": len(set(own.clusters)),
            **_numbers("d_i", own.mean(values)),
            "repeats": sum(
                _repeats(row, [row["text"], *([start["response"]] if name != START else [])])
                for row, start in zip(own.samples, results[START].subset(ids).samples, strict=True)
            ),
            "responses": len(ids),
            **(_numbers("minus_all", change) if name != ALL else {}),
        }


def _repeats(row: dict[str, Any], spoken: Iterable[str]) -> bool:
    counts = [word_errors(text, row["response"], "en") for text in spoken]
    return any(2 * wrong <= words for wrong, words in counts if words)


def _numbers(name: str, found: Any) -> dict[str, float]:
    return {name: float(found.mean), f"{name}_low": float(found.ci_low), f"{name}_high": float(found.ci_high)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
