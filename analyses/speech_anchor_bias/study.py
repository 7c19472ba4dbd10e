"""Make the tables and figures of the study from the archives of this folder.

python analyses/speech_anchor_bias/study.py  # writes the CSV files and the figures

Prints the tables of README.md.
"""

from pathlib import Path

import pandas as pd
from claims import claims, conventions, headline
from page import tables
from pictures import draw
from prediction import prediction
from scored import scored
from table import arms

from lsm_probe.runner.picture_files import save_frame

HERE = Path(__file__).parent


def main() -> None:
    table, claimed = arms(), claims()
    predicted = prediction(table)
    made = {"arms": table, "claims": claimed, "conventions": conventions(), "prediction": predicted}
    made |= {"headline": headline(), "scored": scored()}
    for name, frame in made.items():
        save_frame(frame, HERE / f"{name}.csv")
    draw(table, predicted)
    shown = (pd.read_csv(HERE / f"{name}.csv") for name in ("arms", "claims", "headline", "coverage"))
    print(*tables(*shown), sep="\n\n")


if __name__ == "__main__":
    main()
