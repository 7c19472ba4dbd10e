"""The terminal output of `lsm-probe timeline`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.table import Table

from lsm_probe.console import text_console
from lsm_probe.probes.timeline.page import PAGE
from lsm_probe.probes.timeline.plot import PICTURES, PLACED
from lsm_probe.probes.timeline.result import Timeline
from lsm_probe.runner.tables import attention_check


def show_timeline(timeline: Timeline, out: Path, *, as_json: bool) -> None:
    """Prints the numbers by layer, or all of them as JSON."""
    if as_json:
        print(json.dumps(timeline.to_dict(), ensure_ascii=False))
        return
    console = text_console(highlight=False)
    console.print(_table(timeline))
    console.print(f"response: {timeline.sample['response']}")
    console.print(f"{PLACED[timeline.times_from]}; {attention_check(timeline.self_check['llm'])}")
    if precision := timeline.precision_note():
        console.print(precision)
    if timeline.words_missing:
        print(f"warning: no words: {timeline.words_missing}", file=sys.stderr)
    written = [name for name in (PAGE, *PICTURES, "timeline.json") if (out / name).exists()]
    console.print(f"written to {out}: {', '.join(written)}")


def _table(timeline: Timeline) -> Table:
    title = (
        f"{timeline.checkpoint.name}, sample {timeline.sample['id']}, {timeline.seconds:.2f} s; advance: rank "
        f"correlation of response tokens with the times of their peaks (chance alone: up to {timeline.chance():.2f} "
        "in 19 of 20 layers)"
    )
    table = Table(title=title, title_justify="left")
    for column in ("layer", "eta", "advance", "advance over the mean", "words : silence"):
        table.add_column(column, justify="right")
    for row in timeline.to_frame().drop(columns=["checkpoint", "sample"]).itertuples(index=False):
        layer, *numbers = row
        table.add_row(str(layer), *("–" if number != number else f"{number:.2f}" for number in numbers))
    return table
