"""Draw the figures of this study from its tables, into `figures/open_speech`: python analyses/open_speech/picture.py"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from page import ARMS, KINDS, WAYS

from lsm_probe.runner.checkpoint_styles import NEUTRAL, CheckpointStyle, assign_styles
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.style import with_own_settings

HERE = Path(__file__).parent
PANELS = {
    "instruction_sensitivity": "D_i, nats per token",
    "source_sensitivity": "D_s, nats per token",
    "eta_last_sixth": "η, last sixth of the layers",
}
ASKED = {"one word": "one word", "free": "a title or three items"}
COMPARED = {
    "D_i": "D_i, nats per token",
    "D_s": "D_s, nats per token",
    "word error rate": "word error rate, points",
    "sentences": "loss on sentences, nats",
}
LLM = "builtin:llm"


def main() -> None:
    out = HERE.parents[1] / "figures" / "open_speech"
    out.mkdir(exist_ok=True)
    for name, figure in {"arms": arms_figure(), "kinds": kinds_figure(), "ways": ways_figure()}.items():
        figure.savefig(out / f"{name}.png", dpi=150)


@with_own_settings
def arms_figure() -> Figure:
    """D_i, D_s and η of each arm and seed, with 95 % intervals."""
    checkpoints = json.loads((HERE / "arms.json").read_text(encoding="utf-8"))["checkpoints"]
    evidence = {each["checkpoint"]: {item["key"]: item for item in each["evidence"]} for each in checkpoints}
    names = sorted(evidence.keys() - {LLM}, key=lambda name: (ARMS.index(name[:-2]), name))
    styles = styles_of(names)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 3.6), sharey=True, layout="constrained")
    rows = {name: ARMS.index(name[:-2]) + (int(name[-1]) - 1) / 4 for name in names} | {LLM: len(ARMS)}
    for axis, (key, label) in zip(axes, PANELS.items(), strict=True):
        for name, row in rows.items():
            item = evidence[name][key]
            draw(axis, item["value"], item["ci_low"], item["ci_high"], row, styles.get(name, NEUTRAL))
        axis.set(xlabel=label, xlim=(0, None))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set(yticks=range(len(ARMS) + 1), yticklabels=[*ARMS, "text LLM"])
    axes[0].invert_yaxis()
    return figure


@with_own_settings
def kinds_figure() -> Figure:
    """D_i for instructions of two groups, by what a checkpoint was trained on."""
    table = pd.read_csv(HERE / "kinds.csv").set_index(["checkpoint", "asked"])
    styles = styles_of(KINDS)
    groups = ("one word", "free")
    figure, axes = plt.subplots(1, len(groups), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, group in zip(axes, groups, strict=True):
        for row, name in enumerate(KINDS):
            draw(axis, *table.loc[(name, group), ["d_i", "d_i_low", "d_i_high"]], row, styles[name])
        axis.set(
            xlabel="D_i, nats per token", title=f"asked for {ASKED[group]}", xlim=(min(0, axis.get_xlim()[0]), None)
        )
        axis.grid(axis="x", alpha=0.3)
    axes[0].set(yticks=range(len(KINDS)), yticklabels=KINDS.values())
    axes[0].invert_yaxis()
    return figure


@with_own_settings
def ways_figure() -> Figure:
    """Differences of two ways to train from adapters with one rate, in two seeds."""
    table = pd.read_csv(HERE / "ways.csv").set_index(["second", "number"])
    names = [f"{way}-{seed}" for way in WAYS for seed in (0, 1)]
    styles = {name: CheckpointStyle.from_number(5 + list(WAYS).index(name[:-2])) for name in names}
    figure, axes = plt.subplots(1, len(COMPARED), figsize=(11, 2.4), sharey=True, layout="constrained")
    for axis, (number, label) in zip(axes, COMPARED.items(), strict=True):
        for row, name in enumerate(names):
            draw(axis, *table.loc[(name, number), ["mean", "ci_low", "ci_high"]], row, styles[name])
        axis.axvline(0, color="#4d4d4d", linewidth=1)
        axis.set(xlabel=label)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set(yticks=range(len(names)), yticklabels=[f"{WAYS[n[:-2]]}, seed {n[-1]}" for n in names])
    axes[0].invert_yaxis()
    return figure


def styles_of(names: Iterable[str]) -> dict[str, CheckpointStyle]:
    """The styles of these checkpoints; the text LLM is grey."""
    return assign_styles(
        CheckpointIdentity(name=name, source="text" if name == LLM else "speech", template="chat", dtype="float32")
        for name in names
    )


def draw(axis: plt.Axes, value: float, low: float, high: float, row: float, style: CheckpointStyle) -> None:
    axis.errorbar(value, row, xerr=[[value - low], [high - value]], color=style.color, marker=style.marker, capsize=2)


if __name__ == "__main__":
    main()
