"""What the figures have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from lsm_probe.runner.labels import use_fonts_with_all_glyphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")

MARKERS = "osD^vPX"
"""One for each checkpoint, so that curves can be told apart without their colours."""


@contextmanager
def own_settings() -> Iterator[None]:
    """matplotlib's defaults, whatever the user's matplotlibrc says: `text.usetex` there needs a LaTeX, for example."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # In SVG text stays text, and ids are no random numbers: the same numbers give the same bytes.
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lsm-probe"})
        yield


def with_own_settings(make: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """A function that makes a whole figure, under our settings and with fonts for all its characters."""

    @wraps(make)
    def made(*args: Arguments.args, **options: Arguments.kwargs) -> Figure:
        with own_settings():
            figure = make(*args, **options)
            use_fonts_with_all_glyphs(figure)
        return figure

    return made


def legend_height(height: float, entries: Sequence[Any]) -> float:
    """Height of a figure (inches) whose legend below has room for up to three entries, made higher for more."""
    return height + 0.2 * max(0, len(entries) - 3)
