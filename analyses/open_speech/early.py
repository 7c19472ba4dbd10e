"""Write `early.csv`: what BiasCallback measured at half of the steps, and D_i and D_s at the end.

    python analyses/open_speech/early.py FOLDER

FOLDER is that of `run`. Prints Spearman's rank correlation over the runs of each early number with each final one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
EARLY = ("eta_5", "D_i", "D_s")
FINAL = {"instruction_sensitivity": "final_D_i", "source_sensitivity": "final_D_s"}


def main(folder: Path) -> None:
    checkpoints = json.loads((HERE / "arms.json").read_text(encoding="utf-8"))["checkpoints"]
    rows = []
    for found in checkpoints:
        history = folder / "train" / found["checkpoint"] / "bias.jsonl"
        if history.exists():
            measured = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
            half = next(each for each in measured if each.get("step") == 40)
            end = {FINAL[item["key"]]: item["value"] for item in found["evidence"] if item["key"] in FINAL}
            rows.append({"run": found["checkpoint"], **{key: half[key] for key in EARLY}, **end})
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "early.csv", index=False, float_format="%.6f")
    print(table.drop(columns="run").corr("spearman").loc[list(EARLY), list(FINAL.values())])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
