"""The rules that turn the measurements of a checkpoint into a verdict."""

from __future__ import annotations

from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.diagnosis.verdict import Verdict


def judge(measured: MeasuredCheckpoint) -> Verdict:
    """The verdict about a checkpoint."""
    return Verdict(checkpoint=measured.name, verdict="cannot tell", reason="No rule is written yet.")
