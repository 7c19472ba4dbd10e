"""The report on self-powered data, as `lsm-probe augment` prints it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from lsm_probe.console import text_console
from lsm_probe.data.problems import LEFT_OUT
from lsm_probe.models.thinking import UNFINISHED


def show_report(report: dict[str, Any], out: Path) -> None:
    """Prints counts by task, the speed of generation, and what was written."""
    console = text_console(highlight=False)
    console.print(_counts_table(report))
    if report["tokens_per_second"]:
        console.print(
            f"{report['response_tokens']} answer tokens in {report['seconds']:.0f} s: "
            f"{report['tokens_per_second']:.0f} tokens/s"
        )
    if with_thinking := report.get("thinking"):
        unfinished = report["dropped"].get(UNFINISHED, 0)
        remedy = f"; {unfinished} stop before the thinking ends: raise --max-new-tokens" if unfinished else ""
        console.print(f"{with_thinking} answers begin with thinking, which is left out of the targets{remedy}")
    if report["left_out"]:
        console.print(f"left out: {len(report['left_out'])}, each with its reason in {out / LEFT_OUT}")
    console.print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir() if p.name[0] != '.'))}")


def _counts_table(report: dict[str, Any]) -> Table:
    table = Table(title="self-powered data by task")
    reasons = sorted(report["dropped"])
    for heading in ("task", "samples", "kept", *(f"dropped: {reason}" for reason in reasons), "tokens"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, counts in [*report["tasks"].items(), ("all", report)]:
        mean = counts["mean_response_tokens"]
        dropped = [str(counts["dropped"].get(reason, 0)) for reason in reasons]
        table.add_row(
            name, str(counts["samples"]), str(counts["kept"]), *dropped, "" if mean is None else f"{mean:.0f}"
        )
    return table
