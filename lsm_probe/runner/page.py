"""A measurement's part of a report: sections, and figures as SVG in the colours of the page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lsm_probe.runner.style import own_settings
from lsm_probe.runner.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST_SVG = 300_000
"""In characters; a larger figure (many heads, many samples) becomes a PNG."""
_DARKEST_INK = 0x60


@dataclass(frozen=True)
class Picture:
    """A figure as HTML.

    Attributes:
        description: alternative text.
        html: an `svg` element, or an `img` with a PNG.
        width: width of the drawing, CSS pixels.
    """

    description: str
    html: str
    width: int


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: the `id` of the heading.
        title: the heading.
        intro: how to read the section.
        pictures: figures.
        tables: numbers.
        notes: remarks about the numbers, one line each.
    """

    anchor: str
    title: str
    intro: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def picture(figure: Figure, name: str, description: str) -> Picture:
    """A figure for a page: dark greys become the page's text colour, white its background.

    Args:
        figure: the figure to show.
        name: makes its ids different from those of the page's other figures.
        description: alternative text.
    """
    width = round(96 * figure.get_figwidth())
    svg, png = io.StringIO(), io.BytesIO()
    with own_settings():
        figure.savefig(svg, format="svg", metadata={"Date": None})
    html = _inline(svg.getvalue(), name, description)
    if len(html) > _LARGEST_SVG:
        with own_settings():
            figure.savefig(png, format="png", dpi=130)
        content = base64.b64encode(png.getvalue()).decode()
        html = f'<img alt="{_escaped(description)}" src="data:image/png;base64,{content}">'
    return Picture(description, html, width)


def _inline(svg: str, name: str, description: str) -> str:
    """Only the `svg` element, as a part of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r" <metadata>.*?</metadata>\n| <defs>\n  <style.*?</style>\n </defs>\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{_escaped(description)}" ', 1)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    # Ids without references could occur in several figures of a page, where references of other figures would match.
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', svg))

    def adapted(tag: re.Match[str]) -> str:
        # Round numbers to a hundredth of a point.
        text = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", tag[0])
        text = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
        text = re.sub(r'(url\(#|href="#)', rf"\1{name}-", text)
        text = re.sub(r"font(-family)?: ([^;\"]*?)'DejaVu Sans'[^;\"]*", _font, text)
        return re.sub(r"#([0-9a-f]{2})\1\1\b", _ink, text)

    # Only inside tags: the text between them contains names and words.
    return re.sub(r"<[^>]+>", adapted, svg)


def _font(found: re.Match[str]) -> str:
    return f"font{found[1] or ''}: {found[2]}system-ui, sans-serif"


def _ink(found: re.Match[str]) -> str:
    grey = int(found[1], 16)
    if grey < _DARKEST_INK:
        return "currentColor"
    return "var(--page)" if grey == 0xFF else found[0]


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
