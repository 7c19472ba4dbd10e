"""`lsm-probe check`: compares eta with a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def check(
    baseline: Annotated[
        Path,
        typer.Option(help="The baseline: a result.json or a diagnosis.json, or its folder.", show_default=False),
    ],
    current: Annotated[Path, typer.Option(help="The result to check, likewise.", show_default=False)],
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="How far eta may fall in any layer; of a diagnosis, how far D_i and the share of responses in the "
            "asked-for form may fall.  [default: 0.02 for eta, 0.05 for a diagnosis]",
            show_default=False,
        ),
    ] = None,
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
    """Check whether eta or a diagnosis has become worse, compared with a baseline.

    Reads two JSON files: it needs no model and no GPU, and takes a second. In two result.json of the attention probe, a
    layer has regressed if its eta fell by more than the tolerance. In two diagnosis.json, a checkpoint has regressed if
    its verdict changed to one that is not better, or if D_i or the share of responses in the asked-for form fell by
    more than the tolerance. Exit codes: 0 nothing regressed, 1 something regressed, 2 the two cannot be compared (other
    data, settings, template or layers, or a value that is not a number).

    Examples:

        lsm-probe attention --ckpt my-lsm --response reference --out runs/now

        lsm-probe check --baseline eta/my-lsm.json --current runs/now --update

        lsm-probe check --baseline eta/my-lsm.json --current runs/now

        lsm-probe check --baseline runs/before --current runs/now --paired

        lsm-probe check --baseline diagnoses/my-lsm.json --current runs/diagnose/my-lsm

    By default it checks whether eta fell on these samples; --paired checks whether it would fall on other samples too.
    --two-sided counts a rise, or a better verdict, as well.
    In GitHub Actions it annotates the run and adds a table to the job's summary.
    """
    import warnings
    from json import dumps

    from lsm_probe.errors import CheckFailed
    from lsm_probe.files import check_can_write
    from lsm_probe.regression.github import annotating, publish
    from lsm_probe.regression.kinds import accept, baseline_file, check

    with annotating(baseline):
        if update:
            check_can_write("--baseline", baseline_file(current, baseline))
            accepted = str(accept(current, baseline, arrays=paired))
            print(dumps({"accepted": accepted}) if json else f"accepted: {accepted} is now the baseline")
            return
        found = check(baseline, current, tolerance=tolerance, two_sided=two_sided, paired=paired)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    print(dumps(found.to_dict()) if json else found.text())
    publish(found, baseline)
    if found.regressed:
        raise CheckFailed
