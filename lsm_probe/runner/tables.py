"""Typed tables, and the words and number formats that tables and notes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm_probe.runner.dtypes import dtype_warning
from lsm_probe.runner.result import Curve, MeasurementResult, layer_groups, thinking_summary

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

NONE = "–"
"""Shown in place of a missing number."""
UNKNOWN = "interval unknown"
"""Shown if a number has no interval, because there are fewer than three utterances."""


@dataclass(frozen=True)
class Table:
    """A table of text, for a terminal and for a report.

    Attributes:
        title: what it shows.
        columns: heads of the columns.
        rows: cells.
        note: how to read it.
        text_columns: how many columns, from the left, hold text; the others hold numbers.
        lines: in a terminal, the numbers of rows with a line below.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text_columns: int = 1
    lines: Sequence[int] = ()

    def to_rich(self) -> TerminalTable:
        """The table as rich prints it."""
        from rich.table import Table as TerminalTable

        table = TerminalTable(title=self.title, caption=self.note or None)
        for i, column in enumerate(self.columns):
            if i < self.text_columns:
                table.add_column(column, overflow="fold")
            else:
                table.add_column(column, justify="right")
        for i, row in enumerate(self.rows):
            table.add_row(*row, end_section=i in self.lines)
        return table


def layer_group_names(layers: Sequence[int]) -> list[str]:
    """Heads of the columns for the six groups of layers: `0–4`, ..., or `1/6`, ... where depths differ.

    Args:
        layers: number of layers of each checkpoint.
    """
    groups = layer_groups(layers[0])
    if len(set(layers)) > 1:
        return [f"{i}/{len(groups)}" for i in range(1, len(groups) + 1)]
    return ["–".join(str(layer) for layer in sorted({group[0], group[-1]})) for group in groups]


def attention_check(check: dict[str, Any]) -> str:
    """How well the captured attention reproduced the model's own."""
    through = f"through {check['backend']}: " if check.get("backend", "native") != "native" else ""
    reached, bound = check["worst"], check["worst_bound"]
    return f"{through}alpha, v and W_O reproduce the attention output to {reached:.0e} (bound {bound:.0e})"


def whose(result: MeasurementResult) -> str:
    """Whose responses were measured."""
    if result.checkpoint.responses == "given":
        return "given"
    return "its own" if result.conventions.response == "generated" else "the reference"


def thinking_note(result: MeasurementResult) -> str | None:
    """How many responses begin with thinking, and what was done with it; None if none does."""
    found = thinking_summary(result.samples)
    if found is None:
        return None
    note = (
        f"{found['responses']} of {len(result.samples)} responses begin with thinking (on average "
        f"{found['thinking_tokens']:.1f} tokens, before {found['answer_tokens']:.1f} of the answer)"
    )
    if found["unfinished"]:
        note += f"; {found['unfinished']} stop before the thinking ends: raise --max-new-tokens"
    if result.NAME == "evaluate":
        return f"{note}; {_scored_part({task.read for task in result.conventions.tasks})}"
    if (part := result.checkpoint.response_part) is not None:
        return f"{note}; measured: the {part}"
    return f"{note}; all tokens are measured (--response-part answer: the answers alone)"


def precision_notes(results: Sequence[MeasurementResult]) -> list[str]:
    """How exact the numbers of results are, as sentences; one that holds for all of them is given once. The last one
    warns if results have different dtypes."""
    notes = [result.precision_note() for result in results]
    if len(set(notes)) == 1 and (first := notes[0]) is not None:
        return [_sentence(first)]
    named = [f"{result.name}: {note}." for result, note in zip(results, notes, strict=True) if note is not None]
    return named + mixed_dtypes(results)


def mixed_dtypes(results: Sequence[MeasurementResult]) -> list[str]:
    """A sentence that warns if results in half precision are shown beside results in another dtype; else nothing."""
    warning = dtype_warning({result.name: result.checkpoint.dtype for result in results})
    return [] if warning is None else [_sentence(warning)]


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."


def _scored_part(settings: set[str]) -> str:
    """Which part of responses with thinking is scored.

    Args:
        settings: the `read` of all tasks.
    """
    if settings == {"all"}:
        return "scores use whole responses, thinking included"
    if "all" in settings:
        return "tasks with `read: all` score whole responses, the others only the text after the thinking"
    return (
        "scores use only the text after the thinking, and a response whose thinking does not end counts as empty "
        "(--read all scores whole responses)"
    )


def with_interval(curve: Curve) -> str:
    """A number with its interval, or with a word where it has none."""
    if np.isnan(curve.ci_low):
        return f"{curve.mean:.3f} [{UNKNOWN}]"
    return f"{curve.mean:.3f} [{curve.ci_low:.3f}, {curve.ci_high:.3f}]"


def shown(found: Curve, digits: int = 2) -> str:
    """A number with its interval, or with a word where it has none, with true minus signs."""
    # Adding 0 makes -0.0 a 0.
    mean, *ends = (f"{round(float(end), digits) + 0.0:.{digits}f}" for end in vars(found).values())
    return f"{mean} [{UNKNOWN if np.isnan(found.ci_low) else ', '.join(ends)}]".replace("-", "−")


def measured_on(results: Sequence[MeasurementResult]) -> str:
    """Which responses were measured, and on how many samples, of each result."""
    found = []
    for result in results:
        own = "its own responses" if len(results) == 1 else "their own responses"
        responses = own if result.conventions.response == "generated" else "reference responses"
        if result.checkpoint.responses == "given":
            responses = "given responses"
        if thinking := thinking_summary(result.samples):
            part = result.checkpoint.response_part or "all"
            responses += f", of which {thinking['responses']} begin with thinking (measured: {part})"
        found.append(f"{result.counted}, {responses}")
    if len(set(found)) == 1:
        return f"{found[0]}."
    found = [each.replace("their own", "its own") for each in found]
    return "; ".join(f"{result.name}: {each}" for result, each in zip(results, found, strict=True)) + "."
