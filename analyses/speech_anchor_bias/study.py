"""The study's tables and pictures, from results.tar.xz alone.

python analyses/speech_anchor_bias/study.py  # arms.csv, claims.csv, conventions.csv, prediction.csv, and pictures

Prints the tables of README.md.
"""

from pathlib import Path

import pandas as pd
from claims import claims, conventions
from page import tables
from pictures import draw
from prediction import prediction
from table import arms

from lsm_probe.runner.picture_files import save_frame

HERE = Path(__file__).parent


def main() -> None:
    table, claimed = arms(), claims()
    predicted = prediction(table)
    made = {"arms": table, "claims": claimed, "conventions": conventions(), "prediction": predicted}
    for name, frame in made.items():
        save_frame(frame, HERE / f"{name}.csv")
    draw(table, predicted)
    print(*tables(*(pd.read_csv(HERE / f"{name}.csv") for name in ("arms", "claims"))), sep="\n\n")


if __name__ == "__main__":
    main()
