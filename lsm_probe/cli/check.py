"""`lsm-probe check`: compares eta with a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def check(
    baseline: Annotated[Path, typer.Option(help="The baseline: a result.json or its folder.", show_default=False)],
    current: Annotated[Path, typer.Option(help="The result to check, likewise.", show_default=False)],
    tolerance: Annotated[float, typer.Option(help="How far eta may fall in any layer.")] = 0.02,
    two_sided: Annotated[bool, typer.Option("--two-sided", help="Count a rise as much as a fall.")] = False,
    paired: Annotated[
        bool,
        typer.Option(
            "--paired",
            help="Count only falls that other utterances would show too (p <= 0.05 over all layers); needs folders.",
        ),
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Accept the current result as the new (or first) baseline.")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Check whether eta has fallen, compared with a baseline.

    Reads two result.json files: it needs no model and no GPU, and takes a second. A layer has regressed if its eta fell
    by more than the tolerance. Exit codes: 0 no layer regressed, 1 a layer regressed, 2 the two cannot be compared
    (other data, conventions, template or layers, or a value that is not a number).

    Examples:

        lsm-probe attention --ckpt my-lsm --response reference --out runs/now

        lsm-probe check --baseline eta/my-lsm.json --current runs/now --update

        lsm-probe check --baseline eta/my-lsm.json --current runs/now

        lsm-probe check --baseline runs/before --current runs/now --paired

    By default it checks whether eta fell on these samples; --paired checks whether it would fall on other samples too.
    In GitHub Actions it annotates the run and adds a table to the job's summary.
    """
    import warnings
    from json import dumps

    from lsm_probe.errors import CheckFailed
    from lsm_probe.files import check_can_write
    from lsm_probe.regression.baseline import result_file
    from lsm_probe.regression.check import check
    from lsm_probe.regression.github import annotating, publish
    from lsm_probe.regression.update import accept

    with annotating(baseline):
        if update:
            check_can_write("--baseline", result_file(baseline))
            accepted = str(accept(current, baseline, arrays=paired))
            print(dumps({"accepted": accepted}) if json else f"accepted: {accepted} is now the baseline")
            return
        verdict = check(baseline, current, tolerance=tolerance, two_sided=two_sided, paired=paired)
    for note in verdict.notes:
        warnings.warn(note, stacklevel=2)
    print(dumps(verdict.to_dict()) if json else verdict.text())
    publish(verdict, baseline)
    if verdict.regressed:
        raise CheckFailed
