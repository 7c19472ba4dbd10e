"""`lsm-probe check`: compares eta with a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def check(
    baseline: Annotated[
        Path,
        typer.Option(help="The baseline: a result.json or diagnosis.json, or its folder.", metavar="PATH"),
    ],
    current: Annotated[
        Path, typer.Option(help="The result to check: a file or folder of the same kind.", metavar="PATH")
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="How far a number may fall. [default: 0.02 for eta, 0.05 for a diagnosis]",
            show_default=False,
        ),
    ] = None,
    two_sided: Annotated[bool, typer.Option("--two-sided", help="A rise, or a better verdict, counts too.")] = False,
    paired: Annotated[
        bool,
        typer.Option(
            "--paired",
            help="Count only falls that are significant over utterances (p <= 0.05, corrected).",
        ),
    ] = False,
    update: Annotated[bool, typer.Option("--update", help="Make the current result the baseline.")] = False,
    json: opt.Json = False,
) -> None:
    """Check whether eta or a diagnosis is worse than a baseline.

    Compares two result.json of the attention probe, or two diagnosis.json. It needs no model, and takes a second. A
    layer has regressed if its eta fell by more than the tolerance. A diagnosis has regressed if a verdict became worse,
    or if D_i or the share of responses in the requested form fell by more than the tolerance.

    Exit codes: 0 nothing regressed; 1 something regressed; 2 the two cannot be compared (other data, settings, template
    or layers, or a value that is not finite). In GitHub Actions it also annotates the run.

    Examples:
        lsm-probe attention --ckpt my-lsm --response reference --out runs/now
        lsm-probe check --baseline eta/my-lsm.json --current runs/now --update
        lsm-probe check --baseline eta/my-lsm.json --current runs/now
        lsm-probe check --baseline runs/before --current runs/now --paired
        lsm-probe check --baseline diagnoses/my-lsm.json --current runs/diagnose/my-lsm
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
