"""Compare verdicts on known checkpoints with the expected ones, and count wrong verdicts with fewer utterances.

python analyses/diagnosis/calibrate.py [runs/diagnosis [GROUP ...]]

The folder holds what `measure.py` wrote; without it only the archives of the two studies are read. Groups are those of
`expected.csv`: archive, open, fresh, planted; by default all.

Writes `calibration.csv` and `subsampling.csv`, and prints both as tables of `docs/verdicts.md`. Rows of checkpoints
without measurements in this run are not changed.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import draw, measured_here, of_archive, of_open_study

from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.diagnosis.rules import judge
from lsm_probe.diagnosis.verdict import Evidence, Verdict

HERE = Path(__file__).parent
CALIBRATION, SUBSAMPLING = HERE / "calibration.csv", HERE / "subsampling.csv"
SIZES, DRAWS = (6, 8, 12, 16, 24), 20
NUMBERS = {
    "instruction_sensitivity": "D_i",
    "source_sensitivity": "D_s",
    "transcription_error": "word error rate, %",
    "repeat_share": "repeats",
    "form_share": "in form",
}
SHORT = {"ignores the instruction (speech anchor bias)": "ignores the instruction"}

Known = tuple[str, str, str, MeasuredCheckpoint]
"""Group, data and kind of a checkpoint, as in `expected.csv`, and its measurements."""


def expected() -> dict[tuple[str, str, str], dict[str, str]]:
    """The rows of `expected.csv` by group, data and checkpoint."""
    with (HERE / "expected.csv").open(encoding="utf-8") as file:
        return {(row["group"], row["data"], row["checkpoint"]): row for row in csv.DictReader(file)}


def known(folder: Path | None) -> Iterator[Known]:
    """All checkpoints whose verdict is known."""
    for data, arm, measured in of_archive():
        yield "archive", data, arm, measured
    for arm, measured in of_open_study():
        yield "open", "open", arm, measured
    for data, name, measured in measured_here(folder) if folder is not None else ():
        group = "fresh" if data in ("commands", "probe") else "planted"
        if (group, data, name) in expected():
            yield group, data, name, measured


def outcome(verdict: Verdict, row: dict[str, str]) -> str:
    """`right`, `wrong`, or `cannot tell` where another verdict was expected."""
    if verdict.verdict in (row["expected"], *row["also_right"].split(";")):
        return "right"
    return "cannot tell" if verdict.verdict == "cannot tell" else "wrong"


def calibration_rows(checkpoints: list[Known]) -> list[dict[str, Any]]:
    """One row per checkpoint: expected verdict, actual verdict, and the numbers that determine it."""
    rows = []
    for group, data, kind, measured in checkpoints:
        verdict, row = judge(measured), expected()[group, data, kind]
        rows.append(
            {
                "group": group,
                "data": data,
                "checkpoint": measured.name,
                "expected": row["expected"],
                "found": verdict.verdict,
                "outcome": outcome(verdict, row),
                "utterances": verdict.evidence[0].n_utterances if verdict.evidence else 0,
                **{label: _number(verdict, key) for key, label in NUMBERS.items()},
            }
        )
    return rows


def _number(verdict: Verdict, key: str) -> str:
    found: Evidence | None = next((each for each in verdict.evidence if each.key == key), None)
    if found is None or found.value is None:
        return ""
    digits = 0 if found.unit == "%" else 2
    number = f"{found.value:.{digits}f}"
    if found.ci_low is not None and found.ci_high is not None:
        number += f" [{found.ci_low:.{digits}f}, {found.ci_high:.{digits}f}]"
    return number.replace("-0.00", "0.00")


def subsampling_rows(checkpoints: list[Known]) -> list[dict[str, Any]]:
    """One row per checkpoint and number of utterances: number of draws with each verdict."""
    rows = []
    for group, data, kind, measured in checkpoints:
        assert measured.own is not None
        row, most = expected()[group, data, kind], len(np.unique(measured.own.clusters))
        if row["expected"] == "cannot tell":
            continue
        for n in SIZES:
            if n > most:
                continue
            rng = np.random.default_rng(0)
            verdicts = [judge(draw(measured, n, rng)) for _ in range(DRAWS if n < most else 1)]
            counts = Counter(outcome(each, row) for each in verdicts)
            wrong = Counter(each.verdict for each in verdicts if outcome(each, row) == "wrong")
            rows.append(
                {
                    "group": group,
                    "data": data,
                    "checkpoint": measured.name,
                    "expected": row["expected"],
                    "utterances": n,
                    "draws": len(verdicts),
                    **{name: counts[name] for name in ("right", "cannot tell", "wrong")},
                    "wrong_verdicts": "; ".join(sorted(wrong)),
                }
            )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Write the rows after those of other groups that are already in the file; return all rows."""
    key = ("group", "data", "checkpoint")
    new = {tuple(row[k] for k in key) for row in rows}
    old = read(path) if path.exists() else []
    both = [row for row in old if tuple(row[k] for k in key) not in new] + rows
    order = list(expected())
    both.sort(key=lambda row: next(i for i, each in enumerate(order) if each[:2] == (row["group"], row["data"])))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(both)
    return read(path)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---" for _ in rows[0]) + " |"]
    lines += ["| " + " | ".join(SHORT.get(cell, cell) for cell in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def summary(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Shares over checkpoints of each expected verdict and number of utterances; all checkpoints have equal weight."""
    found = []
    for verdict in dict.fromkeys(row["expected"] for row in rows):
        for n in SIZES:
            own = [row for row in rows if row["expected"] == verdict and int(row["utterances"]) == n]
            if own:
                shares = {
                    name: np.mean([int(row[name]) / int(row["draws"]) for row in own])
                    for name in ("right", "cannot tell", "wrong")
                }
                found.append(
                    {
                        "expected": verdict,
                        "utterances": str(n),
                        "checkpoints": str(len(own)),
                        **{name: f"{100 * share:.0f} %" for name, share in shares.items()},
                    }
                )
    return found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    groups = sys.argv[2:] or ["archive", "open", "fresh", "planted"]
    checkpoints = [each for each in known(folder) if each[0] in groups]
    print(table(write(CALIBRATION, calibration_rows(checkpoints))), end="\n\n")
    print(table(summary(write(SUBSAMPLING, subsampling_rows(checkpoints)))))


if __name__ == "__main__":
    main()
