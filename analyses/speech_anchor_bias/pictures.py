"""Draw the figures of the study from its tables."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from measured import ARMS, LLM, at_length, measured, seeds
from prediction import OUTCOMES, PROBES

from lsm_probe.runner.checkpoint_styles import NEUTRAL, assign_styles
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.picture_files import save_figure

FIGURES = Path(__file__).parents[2] / "figures" / "speech_anchor_bias"
FAMILIES = ("against_llm", "own_D_i", "other_text", "standardised_retrieval")
"""One probe of each family: attention, sensitivity, text ability, alignment."""
STYLES = assign_styles(CheckpointIdentity(name=arm, source="speech", template="", dtype="") for arm in ARMS)
"""The same as in reports."""


def draw(arms: pd.DataFrame, prediction: pd.DataFrame) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, figure in (("eta", eta()), ("prediction", predicted(prediction)), ("outcomes", outcomes(arms))):
        save_figure(figure, FIGURES / name)
        plt.close(figure)


def eta() -> Figure:
    """Eta by layer, one column per seed. Top: the arm's own responses. Bottom: SmolLM2's responses."""
    parts = {"attention": "own words", "same-words": "SmolLM2's words"}
    figure, grid = plt.subplots(
        2,
        len(seeds()),
        figsize=(4.2 * len(seeds()), 5.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, (part, words) in zip(grid, parts.items(), strict=True):
        for ax, seed in zip(row, seeds(), strict=True):
            found = measured(seed, part)
            ax.plot(found[LLM].eta().mean, color=NEUTRAL.color, label="text LLM")
            ax.plot(
                at_length(seed, part).eta().mean,
                "--",
                color=NEUTRAL.color,
                label="text LLM at the length of the speech",
            )
            for arm in ARMS:
                curve = found[arm].eta()
                ax.plot(curve.mean, color=STYLES[arm].color, label=arm)
                ax.fill_between(
                    range(len(curve.mean)), curve.ci_low, curve.ci_high, color=STYLES[arm].color, alpha=0.15
                )
            ax.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
            ax.set(title=f"seed {seed}, {words}", ylim=(0, 1))
    grid[0, 0].set_ylabel("η")
    grid[1, 0].set_ylabel("η")
    for ax in grid[1]:
        ax.set_xlabel("layer")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return figure


def predicted(prediction: pd.DataFrame) -> Figure:
    """Rank correlations of each probe with each outcome, over all arms and over the trained arms."""
    shown = ["following_all", "following_trained", "agreement_all", "agreement_trained"]
    table = prediction.set_index("probe")[shown].rename(index=PROBES)
    table.columns = [f"{OUTCOMES[outcome]}\n{group} arms" for outcome, group in (name.split("_") for name in shown)]
    figure, ax = plt.subplots(figsize=(8.4, 0.34 * len(table) + 1.2), layout="constrained")
    sns.heatmap(table, ax=ax, annot=True, fmt=".2f", cmap="vlag", vmin=-1, vmax=1, cbar_kws={"label": "Spearman's ρ"})
    ax.set(ylabel="")
    ax.tick_params(axis="x", labelsize=7, rotation=0)
    return figure


def outcomes(arms: pd.DataFrame) -> Figure:
    """One probe of each family against both outcomes; colours are arms, points are seeds."""
    figure, grid = plt.subplots(
        len(OUTCOMES),
        len(FAMILIES),
        figsize=(2.9 * len(FAMILIES), 5.4),
        sharex="col",
        sharey="row",
        layout="constrained",
    )
    for row, (outcome, title) in zip(grid, OUTCOMES.items(), strict=True):
        for ax, probe in zip(row, FAMILIES, strict=True):
            for arm in ARMS:
                own = arms[arms["arm"] == arm]
                ax.errorbar(
                    own[probe], own[outcome], color=STYLES[arm].color, fmt=STYLES[arm].marker, label=arm,
                    xerr=_reach(own, probe), yerr=_reach(own, outcome), elinewidth=0.8,
                )  # fmt: skip
        row[0].set_ylabel(title)
    for ax, probe in zip(grid[-1], FAMILIES, strict=True):
        ax.set_xlabel(PROBES[probe])
    figure.legend(*grid[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    return figure


def _reach(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Distances from a number to the ends of its interval, `[2, rows]`; 0 if it has no interval."""
    if f"{name}_low" not in rows:
        return np.zeros((2, len(rows)))
    ends = np.stack([rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]])
    return ends.clip(0)
