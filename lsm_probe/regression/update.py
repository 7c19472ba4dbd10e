"""Accepting a new baseline: a result's files replace the old ones, each of them atomically."""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.regression.baseline import GENERATED, read_baseline, require_two_files, result_file
from lsm_probe.regression.diagnosis import diagnosis_file, read_diagnosis

ARRAYS = ("arrays.npz", "samples.jsonl")
"""Files in a result's folder besides `result.json`; only a paired check needs them."""


def accept(current: str | Path, baseline: str | Path, *, arrays: bool = False) -> Path:
    """Makes the current result the baseline, if a check can use it.

    Args:
        current: file or folder of a result.
        baseline: destination of its `result.json`: a folder, or a file if the name ends in `.json` or is a file
            already.
        arrays: also copy `arrays.npz` and `samples.jsonl`, for a paired check; both paths are then folders. Without it,
            those of an older baseline are deleted.

    Returns:
        The baseline's `result.json`.

    Raises:
        InputError: the current result cannot be used, the two are one file, or the baseline cannot be written.
    """
    require_two_files(current, baseline)
    result = read_baseline(current)
    if result.is_generated:
        warnings.warn(GENERATED, stacklevel=2)
    source, target = result_file(current), result_file(baseline).resolve()
    if arrays:
        from lsm_probe.regression.paired import load_arrays

        load_arrays(Path(current), result)
        if target.name != source.name:
            raise InputError(f"--paired needs a folder for its baseline, which {baseline} is not")
    with _writing(target):
        with ExitStack() as stack:
            # Renamed in reverse order, so that a result.json appears after its other files.
            for name in (source.name, *(ARRAYS if arrays else ())):
                to = target if name == source.name else target.with_name(name)
                shutil.copyfile(source.with_name(name), stack.enter_context(replacing(to)))
        if not arrays and target.name == "result.json":
            for name in ARRAYS:
                target.with_name(name).unlink(missing_ok=True)
    return target


def accept_diagnosis(current: str | Path, baseline: str | Path) -> Path:
    """Makes the current diagnosis the baseline, if a check can use it.

    Args:
        current: file or folder of a diagnosis.
        baseline: destination of its `diagnosis.json`: a folder, or a file if the name ends in `.json` or is a file
            already.

    Returns:
        The baseline's file.

    Raises:
        InputError: for the reasons that [`accept`] gives.
    """
    source, target = diagnosis_file(current), diagnosis_file(baseline).resolve()
    require_two_files(source, target)
    read_diagnosis(current)
    with _writing(target), replacing(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """One line about a place that cannot be written to; the command itself reports a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"the baseline {target} cannot be written ({error.strerror}): choose another place") from None
