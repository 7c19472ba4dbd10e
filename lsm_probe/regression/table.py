"""A check's verdict, as `lsm-probe check` prints it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from lsm_probe.regression.check import Verdict


def show_verdict(verdict: Verdict, *, as_json: bool) -> None:
    """Prints the verdict on stdout, its notes on stderr."""
    for note in verdict.notes:
        warnings.warn(note, stacklevel=2)
    print(json.dumps(verdict.to_dict()) if as_json else verdict.text())


def show_accepted(baseline: Path, *, as_json: bool) -> None:
    """Prints which file is now the baseline."""
    print(json.dumps({"accepted": str(baseline)}) if as_json else f"accepted: {baseline} is now the baseline")
