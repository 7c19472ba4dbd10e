"""The decisive numbers of checkpoints, with their intervals, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lsm_probe.diagnosis.table import COLUMNS
from lsm_probe.diagnosis.verdict import Evidence, Verdict
from lsm_probe.runner.checkpoint_styles import CheckpointStyle, assign_styles
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.labels import checkpoint_labels
from lsm_probe.runner.style import new_figure, with_own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LONGEST = 30
"""Maximum number of characters of a checkpoint's name."""
_PANELS = 4


@with_own_settings
def verdict_figure(verdicts: Sequence[Verdict], base: str | None = None) -> Figure:
    """A row for each checkpoint with its verdict, and a panel for each decisive number (at most four).

    Args:
        verdicts: in the order of the rows.
        base: the checkpoint that is the base LLM. Checkpoints have the same colours as in a report's other figures.

    Example:
        ```python
        figure = verdict_figure(lsm_probe.diagnose("builtin:vanilla_asr", samples).verdicts)
        ```
    """
    import seaborn as sns

    found = [{each.key: each for each in verdict.evidence if each.value is not None} for verdict in verdicts]
    keys = [key for key in COLUMNS if any(key in evidence for evidence in found)][:_PANELS]
    with sns.axes_style("ticks"):
        figure = new_figure(3.2 + 1.9 * max(1, len(keys)), 1.1 + 0.55 * len(verdicts))
        axes = figure.subplots(1, max(1, len(keys)), sharey=True, squeeze=False)[0]
        names = checkpoint_labels([verdict.checkpoint for verdict in verdicts], _LONGEST)
        labels = [f"{name}\n{verdict.verdict}" for name, verdict in zip(names, verdicts, strict=True)]
        axes[0].set_yticks(range(len(verdicts)), labels, fontsize=8)
        axes[0].set_ylim(len(verdicts) - 0.5, -0.5)
        styles = _styles(verdicts, base)
        for ax, key in zip(axes, keys, strict=False):
            for row, (evidence, style) in enumerate(zip(found, styles, strict=True)):
                if key in evidence:
                    _draw(ax, row, evidence[key], style)
            ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
            unit = next(evidence[key].unit for evidence in found if key in evidence)
            ax.set_title(COLUMNS[key], fontsize=9)
            ax.set_xlabel(unit or "", fontsize=8)
            ax.tick_params(axis="x", labelsize=8)
            _widen(ax, unit)
        for ax in axes:
            sns.despine(ax=ax)
    return figure


def _styles(verdicts: Sequence[Verdict], base: str | None) -> list[CheckpointStyle]:
    sources: list[Literal["speech", "text"]] = ["text" if each.checkpoint == base else "speech" for each in verdicts]
    styles = assign_styles(
        CheckpointIdentity(name=each.checkpoint, source=source, template="", dtype="")
        for each, source in zip(verdicts, sources, strict=True)
    )
    return [styles[each.checkpoint] for each in verdicts]


def _widen(ax: Axes, unit: str) -> None:
    """Makes the axis span at least the usual range of the number, so that a narrow interval near 0 looks narrow."""
    low, high = {"": (0.0, 1.0), "%": (0.0, 100.0)}.get(unit, (0.0, 0.5))
    own_low, own_high = ax.get_xlim()
    low, high = min(low, own_low), max(high, own_high)
    ax.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _draw(ax: Axes, row: int, evidence: Evidence, style: CheckpointStyle) -> None:
    """A number as a point, with its interval as a line."""
    value, low, high = evidence.value, evidence.ci_low, evidence.ci_high
    assert value is not None
    # The interval comes from another method than the point and may not contain it.
    reach = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
    shape: dict[str, Any] = {"marker": style.marker, "markersize": 5, "capsize": 2}
    ax.errorbar([value], [row], xerr=reach, linestyle="none", color=style.color, **shape)
