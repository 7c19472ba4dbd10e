"""The speech anchor bias over the steps of a training run: the numbers, their files and their figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.runner.picture_files import save_figure, save_frame
from lsm_probe.runner.style import new_figure, with_own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "bias.jsonl"
_SENSITIVITIES = {"D_i": ("instruction (D_i)", 0, "o"), "D_s": ("speech (D_s)", 1, "s")}
"""Label, place in the palette, and marker of each."""


@dataclass
class BiasHistory:
    """The bias measurements of a model in training, one row per probing.

    Attributes:
        setup: everything that affects the numbers: samples, responses, settings. Probings with different setups are not
            comparable.
        rows: one for each probing, by its step: `epoch`, `eta` (mean over layers), `eta_1` to `eta_6` (groups of
            layers), `D_i` and `D_s` (nats per token), each of the last two with `_low` and `_high` (95 % interval over
            utterances; missing with fewer than three utterances), `n_samples`, `n_utterances`, `seconds`.
        groups: first and last layer of each group.
        responses: token ids of the fixed responses by sample id; None if each probing generates its own.
        every: steps between two probings; None until it is decided, 0 if there are no more probings.
    """

    setup: Mapping[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=list)
    responses: dict[str, list[int]] | None = None
    every: int | None = None

    def to_frame(self) -> pd.DataFrame:
        """A row for each probing, by step."""
        return pd.DataFrame([{"step": step, **self.rows[step]} for step in sorted(self.rows)])

    @with_own_settings
    def plot(self) -> Figure:
        """Draws eta by six groups of layers, and both sensitivities with their intervals, over the steps."""
        import seaborn as sns

        with sns.axes_style("ticks"):
            figure = new_figure(9, 3.6)
            eta, sensitivity = figure.subplots(1, 2)
            self._plot_eta(eta)
            self._plot_sensitivity(sensitivity)
            for ax in (eta, sensitivity):
                ax.set_xlabel("optimizer step")
                sns.despine(ax=ax)
        return figure

    def _plot_eta(self, ax: Axes) -> None:
        import seaborn as sns

        frame = self.to_frame()
        for i, (layers, color) in enumerate(zip(self.groups, sns.color_palette("viridis", 6), strict=False), start=1):
            label = f"layers {layers[0]} to {layers[1]}" if layers[0] < layers[1] else f"layer {layers[0]}"
            if f"eta_{i}" in frame:
                ax.plot(frame["step"], frame[f"eta_{i}"], color=color, marker="o", markersize=3, label=label)
        ax.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        ax.set(ylabel="eta (instruction proportion)", ylim=(0, max(0.6, ax.get_ylim()[1])))
        _add_legend(ax)

    def _plot_sensitivity(self, ax: Axes) -> None:
        import seaborn as sns

        frame, colors = self.to_frame(), sns.color_palette("colorblind")
        for key, (label, color, marker) in _SENSITIVITIES.items():
            if key in frame:
                ax.plot(frame["step"], frame[key], color=colors[color], marker=marker, markersize=3, label=label)
                if {f"{key}_low", f"{key}_high"} <= set(frame):
                    low, high = frame[f"{key}_low"], frame[f"{key}_high"]
                    ax.fill_between(frame["step"], low, high, color=colors[color], alpha=0.15, lw=0)
        ax.axhline(0, color="0.3", linewidth=0.8)
        ax.set_ylabel("sensitivity D (nats per token)")
        _add_legend(ax)

    def save(self, folder: str | Path) -> None:
        """Writes `bias.jsonl`, which [`load`] reads."""
        head = {key: getattr(self, key) for key in ("setup", "groups", "responses", "every")}
        lines = [head, *({"step": step, **self.rows[step]} for step in sorted(self.rows))]
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
            temporary.write_text(text, encoding="utf-8")

    def save_pictures(self, folder: str | Path) -> None:
        """Writes `bias.png`, `bias.svg` and `bias.csv`; nothing if there are no measurements yet."""
        if self.rows:
            save_frame(self.to_frame(), Path(folder) / "bias.csv")
            save_figure(self.plot(), Path(folder) / "bias")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads the `bias.jsonl` in a folder.

        Raises:
            InputError: the file does not exist or cannot be read.
        """
        path = Path(folder) / FILE
        try:
            head, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            # Earlier versions wrote NaN for undefined numbers.
            known = [{key: value for key, value in row.items() if value == value} for row in rows]
            return cls(**head, rows={row.pop("step"): row for row in known})
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} cannot be read ({reason}): delete it, and probing starts again") from error


def _add_legend(ax: Axes) -> None:
    if ax.lines:
        ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
