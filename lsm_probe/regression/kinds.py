"""Checks of eta curves and diagnoses, selected by the kind of the current file."""

from __future__ import annotations

from pathlib import Path

from lsm_probe.errors import InputError
from lsm_probe.regression import check as curve
from lsm_probe.regression import diagnosis, update
from lsm_probe.regression.baseline import require_two_files, result_file

Check = curve.CurveCheck | diagnosis.DiagnosisCheck


def check(
    baseline: str | Path,
    current: str | Path,
    *,
    tolerance: float | None = None,
    two_sided: bool = False,
    paired: bool = False,
) -> Check:
    """Compare a result of the attention probe, or a diagnosis, with a baseline of the same kind.

    Args:
        baseline, current: the JSON file, or its folder; `current` decides which kind it is.
        tolerance: see [`check`][lsm_probe.regression.check.check] and [`check_diagnosis`]; None for its default.
        two_sided: a rise counts as much as a fall.
        paired: only for curves.

    Raises:
        InputError: the two cannot be read or compared.
    """
    if not diagnosis.holds_diagnosis(current):
        limit = curve.TOLERANCE if tolerance is None else tolerance
        return curve.check(baseline, current, tolerance=limit, two_sided=two_sided, paired=paired)
    _refuse_paired(paired)
    require_two_files(diagnosis.diagnosis_file(current), diagnosis.diagnosis_file(baseline))
    limit = diagnosis.TOLERANCE if tolerance is None else tolerance
    return diagnosis.check_diagnosis(baseline, current, tolerance=limit, two_sided=two_sided)


def accept(current: str | Path, baseline: str | Path, *, arrays: bool = False) -> Path:
    """Make the current result or diagnosis the baseline, if a check can use it.

    Args:
        current: the JSON file, or its folder.
        baseline: the destination: a folder, or a file whose name ends in `.json`.
        arrays: for a curve, also copy the files that a paired check needs.

    Returns:
        The baseline's file.

    Raises:
        InputError: the current one cannot be used, the two are one file, or the baseline cannot be written.
    """
    if not diagnosis.holds_diagnosis(current):
        return update.accept(current, baseline, arrays=arrays)
    _refuse_paired(arrays)
    return update.accept_diagnosis(current, baseline)


def baseline_file(current: str | Path, baseline: str | Path) -> Path:
    """The file that a baseline is written to."""
    return (diagnosis.diagnosis_file if diagnosis.holds_diagnosis(current) else result_file)(baseline)


def _refuse_paired(paired: bool) -> None:
    if paired:
        raise InputError("--paired is for results of the attention probe: leave it out for a diagnosis")
