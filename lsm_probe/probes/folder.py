"""The naming convention of a probe's folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lsm_probe.runner.measurement import CommandOptions, Measurement


def probe_in_folder(package: str, *, help: str, options: Callable[..., CommandOptions], **fields: Any) -> Measurement:
    """The probe whose code is in a package, under names that follow from the package's.

    The package `importance`, for example, holds `measure.importance`, `result.ImportanceResult`,
    `plot.importance_figure`, `plot.save_importance`, `tables.importance_table`, `tables.importance_note` and
    `tables.importance_section`. They are imported when they are first needed.

    Args:
        package: its full name.
        help: what the probe measures; see [`Measurement`].
        options: makes the options of the command.
        fields: other fields of [`Measurement`], or other values for those named above.
    """
    name = package.rpartition(".")[2]
    by_convention = {
        "measure": f"{package}.measure:{name}",
        "result": f"{package}.result:{name.capitalize()}Result",
        "table": f"{package}.tables:{name}_table",
        "note": f"{package}.tables:{name}_note",
        "figures": f"{package}.plot:{name}_figure",
        "save_figures": f"{package}.plot:save_{name}",
        "section": f"{package}.tables:{name}_section",
    }
    return Measurement(name=name, help=help, options=options, **{**by_convention, **fields})
