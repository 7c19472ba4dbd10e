"""Notebook views of objects: one line, a small table and a small figure, as HTML without scripts."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from lsm_probe.errors import one_line
from lsm_probe.runner.labels import use_fonts_with_all_glyphs
from lsm_probe.runner.result import MeasurementResult
from lsm_probe.runner.style import new_figure, own_settings
from lsm_probe.runner.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 12
"""Maximum number of rows of a table."""
MOST_BYTES = 50_000
"""Maximum size of a picture; a larger one is drawn with fewer dots."""
_DOTS_PER_INCH = (96, 72, 48)
_COLORS = 128
_MOST_CHARACTERS = 300
"""Maximum length of a cell."""


def result_line(result: MeasurementResult) -> str:
    """Class, checkpoint, number of samples and the headline number: the text of `repr`. It never fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            headline = result.headline()
    except Exception:
        headline = ""
    about = f"{type(result).__name__}({result.name}, {result.counted})"
    return one_line(f"{about}: {headline}" if headline else about)


def result_html(result: MeasurementResult) -> str:
    """The notebook view of the result."""
    return object_html(
        result_line(result),
        lambda: resolve_name(result.TABLE)([result]),
        lambda: result_figure(result),
        text=result.precision_note() or "",
        more="to_frame()",
    )


def result_figure(result: MeasurementResult) -> Figure:
    """The result's `plot`, on a small figure of its own."""
    figure = new_figure(5.5, 3.2)
    ax = figure.subplots()
    result.plot(ax=ax)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def object_html(
    line: str, make_table: Callable[[], Table], make_figure: Callable[[], Figure], *, text: str = "", more: str = ""
) -> str:
    """A line, a table and a picture as HTML that fits light and dark themes. A part that cannot be made is left out.

    Args:
        line: a description of the object.
        make_table: returns the table.
        make_figure: returns the figure.
        text: a paragraph below the line.
        more: where the rows that are not shown can be found.
    """
    paragraph = f"<p>{_escaped(text)}</p>" if text else ""
    parts = [_attempt(lambda: table_html(make_table(), more)), _attempt(lambda: _picture(own_figure(make_figure)))]
    return f"<div><p><code>{_escaped(line)}</code></p>{paragraph}{''.join(parts)}</div>"


def own_figure(make_figure: Callable[[], Figure]) -> Figure:
    """The figure, made with our settings and with fonts for all its characters."""
    with own_settings():
        figure = make_figure()
        use_fonts_with_all_glyphs(figure)
    return figure


def table_html(table: Table, more: str = "") -> str:
    """A table's title, its first rows and its note."""
    head = "".join(f"<th>{_escaped(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{_cells(row, table.text_columns)}</tr>" for row in table.rows[:MOST_ROWS])
    left_out = len(table.rows) - MOST_ROWS
    notes = [f"{left_out} more rows: {more}" if more else f"{left_out} more rows"] if left_out > 0 else []
    notes += [table.note] if table.note else []
    note = f"<p><small>{_escaped('; '.join(notes))}</small></p>" if notes else ""
    caption = f"<p><strong>{_escaped(table.title)}</strong></p>" if table.title else ""
    return f"{caption}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def _cells(row: Any, text_columns: int) -> str:
    styles = ("text-align:left" if i < text_columns else "text-align:right;white-space:nowrap" for i in range(len(row)))
    return "".join(f'<td style="{style}">{_escaped(_cut(cell))}</td>' for style, cell in zip(styles, row, strict=True))


def _picture(figure: Figure) -> str:
    """An `img` on white, which is readable in either theme; notebook viewers keep it but may remove SVG."""
    from PIL import Image

    for dots in _DOTS_PER_INCH:
        drawn, png = io.BytesIO(), io.BytesIO()
        with own_settings():
            figure.savefig(drawn, format="png", dpi=dots, facecolor="white")
        Image.open(drawn).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(png, "png", optimize=True)
        if png.tell() <= MOST_BYTES:
            break
    content = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="" style="background:white;max-width:100%" src="data:image/png;base64,{content}">'


def _attempt(make: Callable[[], str]) -> str:
    """The return value of `make`, or nothing if it fails, because an object must always be shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()
    except Exception:
        return ""


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text)).replace("\n", "<br>")


def _cut(cell: str) -> str:
    return cell if len(cell) <= _MOST_CHARACTERS else f"{cell[:_MOST_CHARACTERS]}…"
