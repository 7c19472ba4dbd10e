"""Labels in figures from users' and models' text (names, instructions, tokens), drawn literally."""

from __future__ import annotations

import textwrap
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN_FONT = "DejaVu Sans"
"""matplotlib's default font, which it includes."""
_LONGEST = 60
_WIDTH_OF_CHARACTER = 0.62
"""Width of an average character of [`OWN_FONT`], as a share of the font size."""
_INVISIBLE = "\N{ZERO WIDTH SPACE}"
_NO_FONTS = ("Last Resort", "Color")
"""Parts of the names of fonts that draw every character as a box, or as pictures that matplotlib cannot draw."""


def plain(text: str) -> str:
    r"""Text in a form in which matplotlib draws every character.

    Without this, `$` starts a formula, and a leading underscore hides a text from legends. A character that is in no
    installed font is replaced by its code, such as `\u6a21`, with a warning. A control character, which SVG does not
    allow, is replaced without a warning. Line breaks are kept.
    """
    written = "".join(
        c if c == "\n" or _can_be_drawn(c) else c.encode("unicode_escape").decode() for c in text
    ).replace("$", r"\$")
    return f"{_INVISIBLE}{written}" if written.startswith("_") else written


def wrapped(text: str, inches: float, points: float) -> str:
    """Text broken into lines that fit a width at a font size. Words that are too long are cut."""
    return textwrap.fill(text, max(8, int(72 * inches / (_WIDTH_OF_CHARACTER * points))))


def checkpoint_labels(names: Sequence[str], longest: int = _LONGEST) -> list[str]:
    """Names of checkpoints for legends and titles, all different; long names lose their beginning to a `…`."""
    cut = [name if len(name) <= longest else f"…{name[1 - longest :]}" for name in names]
    labels = [plain(name).replace("\n", r"\n") for name in cut]
    normalised = [unicodedata.normalize("NFC", label) for label in labels]
    for i, label in enumerate(normalised):
        if normalised.count(label) > 1:
            labels[i] += f" ({normalised[: i + 1].count(label)})"
    return labels


def path_tails(names: Sequence[str]) -> dict[str, str]:
    """The shortest unique end of each path; a final `/model`, which training writes, is removed."""
    parts = {}
    for name in names:
        own = [name] if name.startswith("builtin:") else [part for part in name.split("/") if part] or [name]
        parts[name] = own[:-1] if len(own) > 1 and own[-1] == "model" else own
    tails = {}
    for name, own in parts.items():
        others = [other for key, other in parts.items() if key != name]
        depth = next((d for d in range(1, len(own)) if all(own[-d:] != o[-d:] for o in others)), len(own))
        tails[name] = "/".join(own[-depth:])
    alike = Counter(tails.values())
    return {name: tail if alike[tail] == 1 else name for name, tail in tails.items()}


def use_fonts_with_all_glyphs(figure: Figure) -> None:
    """Adds to each text of a figure the fonts for characters that matplotlib's own font lacks."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if fonts := _further_fonts(text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *fonts])
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        # Ticks are recreated when they are drawn.
        labels = axis.get_ticklabels()
        if fonts := _further_fonts("".join(label.get_text() for label in labels)):
            axis.set_tick_params(labelfontfamily=[*labels[0].get_fontfamily(), *fonts])


def _further_fonts(text: Iterable[str]) -> list[str]:
    found = {_font_of(c) or OWN_FONT for c in text if not c.isspace()}
    return sorted(found - {OWN_FONT})


def _can_be_drawn(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs"):  # control characters, halves of surrogate pairs
        return False
    if character.isspace() or _font_of(character) is not None:
        return True
    _warn_of_codes()
    return False


@cache
def _warn_of_codes() -> None:
    warnings.warn(
        "some characters are in no installed font, so the figures show their codes, such as \\u6a21: install a font "
        "that has them, for example Noto Sans CJK",
        stacklevel=2,
    )


@cache
def _font_of(character: str) -> str | None:
    """Name of the first font that has the character, with matplotlib's own font tried first; None if there is none."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager, get_font

    code = ord(character)
    # By its file: matplotlib's list of fonts is kept between programs, and may lack its own after an update.
    if get_font(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_char_index(code):
        return OWN_FONT
    entries = [e for e in fontManager.ttflist if e.style == "normal" and not any(part in e.name for part in _NO_FONTS)]
    for entry in sorted(entries, key=lambda e: (abs(int(e.weight) - 400), e.name, e.fname)):
        try:
            font = get_font(entry.fname)
        except (OSError, RuntimeError):  # the file is missing, or FreeType cannot read it
            continue
        if font.scalable and font.get_char_index(code):
            return str(entry.name)
    return None
