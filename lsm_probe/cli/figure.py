"""`lsm-probe figure`: the paper's figures and tables of one's own results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Draws results in the form of the paper's figures and tables, at the size a paper prints them, with the numbers behind
them: figure3 (eta in six groups of layers), figure5 (the same, and what the last LSM adds to the others),
figure6 (speech and transcript in one plane), table2 (tasks), table6 (MMLU), table7 (cascade and speed).

Examples:

    lsm-probe figure figure5 runs/attention/vanilla runs/attention/self-powered --out figures

    lsm-probe figure table2 runs/evaluate/arms --out figures

A folder of a run over several checkpoints stands for all of them. Figures are written as .png, .svg and .csv, tables as
.csv, .md and .tex.
"""


def figure(
    name: Annotated[str, typer.Argument(help="figure3, figure5, figure6, table2, table6 or table7.")],
    result: Annotated[list[Path], typer.Argument(help="Result folders.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
) -> None:
    opt.one_of("figure", name, "figure3", "figure5", "figure6", "table2", "table6", "table7")
    from lsm_probe.files import check_can_write
    from lsm_probe.reports.collection import KINDS, read_results
    from lsm_probe.reports.paper_figures import save_drawing

    check_can_write("--out", out, folder=True)
    found = read_results(result)
    out.mkdir(parents=True, exist_ok=True)
    written = save_drawing(name, [result for kind in KINDS for result in found.of(kind)], out)
    print("\n".join(str(out / file) for file in written))


figure.__doc__ = EXAMPLES
