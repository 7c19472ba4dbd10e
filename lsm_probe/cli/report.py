"""`lsm-probe report`: writes an HTML page about results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[list[Path], typer.Argument(help="Output folders.", metavar="RESULT...", show_default=False)],
    out: Annotated[Path, typer.Option(help="The page.", metavar="FILE")] = Path("report.html"),
    notebook: Annotated[
        bool | None,
        typer.Option(
            "--notebook/--no-notebook",
            help="Also write the notebook. [default: if its packages are installed]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write an HTML page and a notebook about results.

    The page begins with the verdict about each checkpoint and its evidence. Then it shows eta by layer, single heads,
    sensitivity, knockout, alignment, importance, evaluation, timelines with audio, and the source of every number. It
    is one file below 5 MB that needs no network and no JavaScript. The notebook is written beside it, executed. No
    model is run.

    Give output folders of probes, evaluations and timelines, or folders that hold them up to two levels below. Results
    of one probe must be on the same data.

    Examples:
        lsm-probe report runs/attention/before+after --out report.html
        lsm-probe report runs/attention runs/sensitivity runs/knockout runs/timeline
    """
    from lsm_probe.distributed import print_on_main
    from lsm_probe.errors import InputError
    from lsm_probe.extras import install_command
    from lsm_probe.files import check_can_write
    from lsm_probe.reports.collection import read_results
    from lsm_probe.reports.notebook import missing, save_notebook
    from lsm_probe.reports.report import save_report

    page_and_notebook = out, out.with_suffix(".ipynb")
    if out == page_and_notebook[1]:
        raise InputError(
            f"--out {out} would overwrite the page with its notebook: give the page another suffix, such as .html"
        )
    absent = missing()
    for path in page_and_notebook if notebook or (notebook is None and not absent) else (out,):
        check_can_write("--out", path)
    found = read_results(results)
    save_report(found, out)
    print(f"written to {out}")
    if notebook is None and absent:
        print_on_main(f"no notebook, which needs {', '.join(absent)}: {install_command('notebooks')}")
    elif notebook is not False:
        save_notebook(found, page_and_notebook[1])
        print(f"written to {page_and_notebook[1]}")
