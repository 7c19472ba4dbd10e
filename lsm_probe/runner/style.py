"""What all figures share: settings, sizes, colours, curves with bands, and legends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec

from lsm_probe.progress import in_notebook
from lsm_probe.runner.checkpoint_styles import result_labels, result_styles
from lsm_probe.runner.labels import use_fonts_with_all_glyphs
from lsm_probe.runner.result import Curve, MeasurementResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")


@contextmanager
def own_settings() -> Iterator[None]:
    """matplotlib's defaults instead of the user's matplotlibrc, where `text.usetex`, for example, would need LaTeX."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # In SVG, keep text as text and make ids deterministic, so that the same numbers give the same bytes.
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lsm-probe"})
        yield


def with_own_settings(make: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Wraps a function that makes a whole figure: it runs with our settings and adds fonts for all characters."""

    @wraps(make)
    def made(*args: Arguments.args, **options: Arguments.kwargs) -> Figure:
        with own_settings():
            figure = make(*args, **options)
            use_fonts_with_all_glyphs(figure)
        _let_figures_show_themselves()
        return figure

    return made


def _let_figures_show_themselves() -> None:
    """IPython shows inline figures that are not pyplot's only after this import."""
    if in_notebook():
        with suppress(ImportError):
            import_module("matplotlib_inline.backend_inline")


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches. It does not use pyplot, so the notebook's backend does not change."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, or those of a new pyplot figure of this size in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def curve_styles(results: Sequence[MeasurementResult]) -> list[dict[str, Any]]:
    """Label, colour and marker of each result's curve, as `Axes.plot` takes them."""
    return [
        {"label": label, "color": style.color, "marker": style.marker, "markersize": 5 if style.marker == "*" else 3}
        for label, style in zip(result_labels(results), result_styles(results), strict=True)
    ]


def plot_with_band(x: Sequence[int], curve: Curve, ax: Axes, **style: Any) -> None:
    """Draw a curve, and its interval as a band of the same colour."""
    (line,) = ax.plot(x, curve.mean, **style)
    ax.fill_between(x, curve.ci_low, curve.ci_high, color=line.get_color(), alpha=0.15, linewidth=0)


def add_legend_below(figure: Figure, ax: Axes) -> None:
    """Explain the curves of `ax` below the figure, a line each."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, frameon=False, fontsize=8)


def legend_height(height: float, entries: Sequence[Any]) -> float:
    """Height of a figure (inches) whose legend below has room for up to three entries, made higher for more."""
    return height + 0.2 * max(0, len(entries) - 3)
