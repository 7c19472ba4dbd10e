"""Notebook views of a verdict and a diagnosis."""

from __future__ import annotations

from lsm_probe.diagnosis.diagnosis import Diagnosis
from lsm_probe.diagnosis.plot import verdict_figure
from lsm_probe.diagnosis.table import verdict_table
from lsm_probe.diagnosis.verdict import Verdict
from lsm_probe.runner.notebook_view import object_html
from lsm_probe.runner.tables import NONE, Table


def diagnosis_html(diagnosis: Diagnosis) -> str:
    """A table with the verdict and the decisive numbers of each checkpoint, and a figure of the numbers."""
    return object_html(repr(diagnosis), lambda: verdict_table(diagnosis.verdicts), diagnosis.plot)


def verdict_html(verdict: Verdict) -> str:
    """The verdict with its reason, all its evidence, missing information and warnings."""
    return object_html(
        repr(verdict),
        lambda: _evidence_table(verdict),
        lambda: verdict_figure([verdict]),
        text=" ".join([verdict.reason, *verdict.missing, *verdict.warnings]),
        more="to_frame()",
    )


def _evidence_table(verdict: Verdict) -> Table:
    rows = [
        [each.label, each.side, each.compared_with, each.shown or NONE, each.unit, str(each.n_utterances)]
        for each in verdict.evidence
    ]
    columns = ["evidence", "for or against the verdict", "compared with", "value", "unit", "utterances"]
    return Table("", columns, rows, text_columns=3)
