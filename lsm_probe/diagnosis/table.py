"""The verdicts as a table."""

from __future__ import annotations

from collections.abc import Sequence

from lsm_probe.diagnosis.verdict import Verdict
from lsm_probe.runner.tables import NONE, Table

COLUMNS = {
    "instruction_sensitivity": "D_i",
    "source_sensitivity": "D_s",
    "transcription_error": "word error rate, %",
    "repeat_share": "repeats the speech",
    "form_share": "in the asked-for form",
}
"""The decisive numbers, by their key in `diagnosis.json`."""
MAIN = ("instruction_sensitivity", "source_sensitivity", "transcription_error")
"""The numbers of a narrow table."""


def verdict_table(verdicts: Sequence[Verdict], keys: Sequence[str] = tuple(COLUMNS)) -> Table:
    """A row for each checkpoint: the verdict and numbers with their intervals.

    Args:
        verdicts: the checkpoints' verdicts.
        keys: the numbers to show, from [`COLUMNS`].
    """
    found = [{each.key: each for each in verdict.evidence} for verdict in verdicts]
    keys = [key for key in keys if any(key in evidence for evidence in found)]
    counts = sorted({each.n_utterances for evidence in found for key, each in evidence.items() if key in keys})
    n = "–".join(str(count) for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    note = (
        "D_i, D_s: how much responses depend on instruction and source, nats per token; brackets: 95 % intervals over "
        f"{n} utterances"
        if keys
        else ""
    )
    rows = [
        [
            verdict.checkpoint,
            verdict.verdict,
            *(evidence[key].shown or NONE if key in evidence else NONE for key in keys),
        ]
        for verdict, evidence in zip(verdicts, found, strict=True)
    ]
    return Table("Verdicts", ["checkpoint", "verdict", *(COLUMNS[key] for key in keys)], rows, note, text_columns=2)
