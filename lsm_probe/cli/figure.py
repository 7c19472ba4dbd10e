"""`lsm-probe figure`: draws results as the figures and tables of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Name = Literal["figure3", "figure5", "figure6", "table2", "table6", "table7"]


def figure(
    name: Annotated[Name, typer.Argument(help="The figure or table.", show_default=False)],
    result: Annotated[list[Path], typer.Argument(help="Result folders.", metavar="RESULT...", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write to.", metavar="FOLDER")] = Path(),
) -> None:
    """Draw results as the figures and tables of the paper.

    figure3 shows eta in six groups of layers; figure5 also how the last LSM differs from the others; figure6 the states
    for speech and for transcripts in one plane. table2 shows the tasks, table6 MMLU, table7 the cascade and speed. A
    folder of a run over several checkpoints stands for all of them.

    Examples:
        lsm-probe figure figure5 runs/attention/before runs/attention/after --out figures
        lsm-probe figure table2 runs/evaluate/arms --out figures

    Writes a figure as .png, .svg and .csv, and a table as .csv, .md and .tex.
    """
    from lsm_probe.files import check_can_write
    from lsm_probe.reports.collection import read_results
    from lsm_probe.reports.paper_figures import save_paper_figure

    check_can_write("--out", out, folder=True)
    found = read_results(result)
    out.mkdir(parents=True, exist_ok=True)
    written = save_paper_figure(name, [each for _, group in found.measured() for each in group], out)
    print("\n".join(str(out / file) for file in written))
