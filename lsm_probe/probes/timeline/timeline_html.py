"""The notebook view of a timeline."""

from __future__ import annotations

from lsm_probe.probes.timeline.result import Timeline
from lsm_probe.runner.notebook_view import object_html
from lsm_probe.runner.tables import NONE, Table


def timeline_html(timeline: Timeline) -> str:
    """The timeline's `repr`, its numbers by layer, and its picture."""
    return object_html(repr(timeline), lambda: _table(timeline), timeline.plot, more="to_frame()")


def _table(timeline: Timeline) -> Table:
    frame = timeline.to_frame().drop(columns=["checkpoint", "sample"])
    rows = [
        [str(layer), *(NONE if number != number else f"{number:.2f}" for number in numbers)]
        for layer, *numbers in frame.itertuples(index=False)
    ]
    return Table("", [str(name).replace("_", " ") for name in frame.columns], rows, text_columns=0)
