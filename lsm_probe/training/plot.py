"""Losses over training: the training loss, and the held-out loss with true, other speech and other instructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lsm_probe.files import replacing
from lsm_probe.runner.picture_files import save_figure
from lsm_probe.runner.style import axes_or_new, new_figure, with_own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = {
    "loss": "training",
    "eval_loss": "held out",
    "eval_loss_speech_shuffled": "held out, speech of another",
    "eval_loss_instruction_shuffled": "held out, instruction of another",
}
_FEW = 4
"""Fewer losses than this are points without a line, which would say how the loss went between them."""


def history_frame(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """The losses that a run logged: a row for each step, a column for each curve, nats per response token."""
    rows: dict[int, dict[str, float]] = {}
    for entry in entries:
        rows.setdefault(entry["step"], {}).update({key: entry[key] for key in _CURVES if key in entry})
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(_CURVES)).sort_index()
    return frame.dropna(axis=0, how="all").rename_axis("step")


def plot_history(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws the curves of [`history_frame`] over optimizer steps."""
    import seaborn as sns

    ax = axes_or_new(ax, 6, 4)
    blue, _, green, red = sns.color_palette("colorblind", 4)
    # A control without effect coincides with the true curve, so both must stay visible.
    styles: dict[str, dict[str, Any]] = {
        "loss": {"color": "0.75", "linewidth": 1},
        "eval_loss": {"color": blue, "linewidth": 3, "marker": "o"},
        "eval_loss_speech_shuffled": {"color": green, "marker": "s", "markersize": 4},
        "eval_loss_instruction_shuffled": {"color": red, "marker": "^", "markersize": 4, "linestyle": "--"},
    }
    for key, label in _CURVES.items():
        curve = frame[key].dropna()
        if len(curve):
            line = {"linestyle": ""} if key != "loss" and len(curve) < _FEW else {}
            ax.plot(curve.index, curve, label=label, **styles[key] | line)
    ax.set(xlabel="optimizer step", ylabel="loss (nats per response token)", ylim=(0, None))
    if ax.lines:
        ax.legend(frameon=False)
    return ax


@with_own_settings
def history_figure(frame: pd.DataFrame) -> Figure:
    """A figure of the curves alone."""
    figure = new_figure(6, 4)
    plot_history(frame, figure.add_subplot())
    return figure


def save_history(path: Path) -> None:
    """Writes `history.png`, `.svg` and `.csv` beside a `history.json`."""
    frame = history_frame(json.loads(path.read_text(encoding="utf-8")))
    save_figure(history_figure(frame), path.with_suffix(""))
    with replacing(path.with_suffix(".csv")) as temporary:
        frame.to_csv(temporary)


def save_histories(out: Path) -> None:
    """Draws the losses of each stage of a run."""
    for history in sorted([out / "history.json", *out.glob("*/history.json")]):
        if history.exists():
            save_history(history)
