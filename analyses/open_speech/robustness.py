"""Write `disturbed.csv`: the built-in checkpoints on clips with noise, on faster clips, and on an unheard voice.

    python analyses/open_speech/robustness.py natural disturbed analyses/open_speech/disturbed.csv

`natural` is the folder of `lsm-probe diagnose` on the clips as they are, `disturbed` has such a folder for each
condition. Each row is one number of a checkpoint in a condition, with its 95 % interval, and, if the clips are the
same, its difference from the clips as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from claims import LLM, NUMBERS, Results, read

from lsm_probe.reports.collection import read_results
from lsm_probe.reports.verdicts import find_verdicts

AS_THEY_ARE = "as they are"
EVIDENCE = {
    "instruction_sensitivity": "D_i",
    "source_sensitivity": "D_s",
    "transcription_error": "word error rate",
    "repeat_share": "repeats",
}


def main(natural: Path, disturbed: Path, out: Path) -> None:
    folders = {AS_THEY_ARE: natural} | {path.name: path for path in sorted(disturbed.iterdir()) if path.is_dir()}
    results: Results = {}
    for condition, folder in folders.items():
        for measurement, found in read(folder).items():
            results.setdefault(measurement, {}).update({f"{condition}/{name}": each for name, each in found.items()})
    rows = (row for condition, folder in folders.items() for row in of_condition(condition, folder, results))
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.6f", lineterminator="\n")


def of_condition(condition: str, folder: Path, results: Results) -> Iterator[dict[str, Any]]:
    """A row for each checkpoint and number."""
    for verdict in sorted(find_verdicts(read_results([folder]), LLM), key=lambda verdict: verdict.checkpoint):
        for each in verdict.evidence:
            if (name := EVIDENCE.get(each.key)) is None or verdict.checkpoint == LLM:
                continue
            own = {"mean": each.value, "ci_low": each.ci_low, "ci_high": each.ci_high}
            change = _change(results, name, condition, verdict.checkpoint)
            about = {"condition": condition, "checkpoint": verdict.checkpoint, "verdict": verdict.verdict}
            yield {**about, "number": name, **own, **change}


def _change(results: Results, name: str, condition: str, checkpoint: str) -> dict[str, float]:
    first, second = f"{AS_THEY_ARE}/{checkpoint}", f"{condition}/{checkpoint}"
    same_clips = results["sensitivity"][first].ids == results["sensitivity"][second].ids
    if condition == AS_THEY_ARE or name not in NUMBERS or not same_clips:
        return {}
    found = NUMBERS[name](results, first, second)
    return {"change": float(found.mean), "change_low": float(found.ci_low), "change_high": float(found.ci_high)}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
