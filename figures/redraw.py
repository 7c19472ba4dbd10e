"""Draws the figures of earlier studies again from the numbers beside them: python figures/redraw.py

Their results are not stored, only the tables that were written with the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.looks import NEUTRAL, Look, looks_of

HERE = Path(__file__).parent


def looks(names: Sequence[str]) -> dict[str, Look]:
    """The same colours as in reports, by name and in this order; the text LLM is grey."""
    texts = [name for name in names if name.startswith("builtin:llm") or name == "my-llm"]
    found = looks_of(
        CheckpointIdentity(
            name=ARMS.get(name, name), source="text" if name in texts else "speech", template="", dtype=""
        )
        for name in names
        if " at length of " not in name
    )
    return {name: found.get(ARMS.get(name, name), NEUTRAL) for name in names}


ARMS = {"runs/sp/1-listen/model": "vanilla", "runs/sp/model": "self_powered", "my-lsm": "vanilla"}
ARMS |= {"full_listening": "vanilla", "full": "self_powered"}
"""Names in the tables -> arms."""


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path.with_suffix(".png"), dpi=150)
    plt.close(figure)


def short(name: str) -> str:
    return ARMS[name] if name.startswith("runs/") else name.removesuffix("/model").rpartition("/")[2]


def eta(folder: str) -> Figure:
    table = pd.read_csv(HERE / folder / "eta.csv")
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for ax, segment in zip(axes, ("mean", "sum"), strict=True):
        for name, look in looks(list(table["checkpoint"].unique())).items():
            own = table[(table["checkpoint"] == name) & (table["segment"] == segment)]
            is_control = " at length of " in name
            label = "the text LLM at the speech's length" if is_control else short(name)
            style = {"linestyle": "--", "marker": ""} if is_control else {"marker": look.marker, "markersize": 3}
            ax.plot(own["layer"], own["eta"], color=look.color, label=label, **style)
            ax.fill_between(own["layer"], own["ci_low"], own["ci_high"], color=look.color, alpha=0.15, linewidth=0)
        ax.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        ax.set(title=f"segment = {segment}", xlabel="layer", ylim=(0, 1))
    axes[0].set_ylabel("η")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def heads() -> Figure:
    table = pd.read_csv(HERE / "heads" / "eta_heads.csv")
    names = list(table["checkpoint"].unique())
    maps = {
        name: table[table["checkpoint"] == name].pivot(index="head", columns="layer", values="eta") for name in names
    }
    shares = {n: table[table["checkpoint"] == n].pivot(index="head", columns="layer", values="share") for n in names}
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), layout="constrained")
    for ax, name in zip(axes, names, strict=False):
        area = (shares[name] / shares[name].max()).to_numpy()
        layers, head = np.meshgrid(maps[name].columns, maps[name].index)
        drawn = ax.scatter(layers, head, s=110 * area, c=maps[name], marker="s", cmap="RdBu", vmin=0, vmax=1)
        ax.set(title=f"{name}: η of each head (area: its share of the layer)", ylabel="head", facecolor="0.85")
        ax.invert_yaxis()
        figure.colorbar(drawn, ax=ax, label="η", pad=0.01)
    first, second = names[:2]
    edges = np.arange(31) - 0.5
    change = axes[2].pcolormesh(edges, np.arange(10) - 0.5, maps[second] - maps[first], cmap="RdBu", vmin=-1, vmax=1)
    axes[2].set(title=f"η of {second} minus η of {first}", xlabel="layer", ylabel="head")
    axes[2].invert_yaxis()
    figure.colorbar(change, ax=axes[2], label="difference of η", pad=0.01)
    return figure


def knockout() -> Figure:
    table = pd.read_csv(HERE / "beyond_attention" / "knockout.csv")
    names = list(table["checkpoint"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for ax, segment in zip(axes, ("instruction", "source"), strict=True):
        for name, look in looks(names).items():
            own, key = table[table["checkpoint"] == name], f"fall_{segment}"
            ax.plot(own["layer"], own[key], color=look.color, marker=look.marker, markersize=3, label=short(name))
            ax.fill_between(own["layer"], own[f"{key}_low"], own[f"{key}_high"], color=look.color, alpha=0.15)
        ax.axhline(0, color="0.3", linewidth=0.8)
        ax.set(title=f"without the {segment}", xlabel="layer (middle of 5)")
    axes[0].set_ylabel("nats per response token lost")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def ranking() -> Figure:
    table = pd.read_csv(HERE.parent / "analyses" / "beyond_attention" / "ranking.csv").set_index("checkpoint")
    colours = [look.color for look in looks(list(table.index)).values()]
    figure, grid = plt.subplots(2, 4, figsize=(10, 4.6), sharey=True, layout="constrained")
    for ax, column in zip(grid.flat, table.columns, strict=True):
        bars = ax.barh(np.arange(len(table)), table[column].fillna(0), color=colours)
        ax.bar_label(bars, ["" if np.isnan(v) else f"{v:.2f}" for v in table[column]], padding=2, fontsize=8)
        ax.set_yticks(np.arange(len(table)), [short(name) for name in table.index])
        ax.set_title(column, fontsize=10)
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.margins(x=0.25)
    grid[0, 0].invert_yaxis()
    return figure


def training(name: str) -> Figure:
    table = pd.read_csv(HERE / "miniature_training" / f"{name}.csv")
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    trained = table.dropna(subset="loss")
    ax.plot(trained["step"], trained["loss"], color="0.75", linewidth=1, label="training")
    kinds = {
        "eval_loss": ("held out", "#0173b2", "o", -1),
        "eval_loss_speech_shuffled": ("held out, speech of another", "#029e73", "s", 0),
        "eval_loss_instruction_shuffled": ("held out, instruction of another", "#d55e00", "^", 1),
    }
    for column, (label, colour, marker, side) in kinds.items():
        measured = table.dropna(subset=column)
        few = len(measured) < 4  # a line would say that something was measured between them
        shift = side * table["step"].max() / 80 if few else 0
        look = {"linestyle": "none" if few else "-", "marker": marker, "markersize": 6 if few else 4}
        ax.plot(measured["step"] + shift, measured[column], color=colour, label=label, **look)
    ax.set(xlabel="optimizer step", ylabel="loss (nats per response token)", ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    return figure


def importance() -> Figure:
    table = pd.read_csv(HERE / "text_ability" / "importance.csv")
    names = list(table["checkpoint"].unique())
    matrices = table.dropna(subset=["layer", "module"]).query("module.str.contains('proj')")
    figure = plt.figure(figsize=(11, 11.5), layout="constrained")
    grid = figure.add_gridspec(5, 2, height_ratios=[4, 2.2, 2.2, 2.2, 2.2])
    top, maps = figure.add_subplot(grid[0, :]), []
    norm = LogNorm(matrices["mean"].min(), matrices["mean"].max())
    modules = list(dict.fromkeys(matrices["module"]))
    for i, (name, look) in enumerate(looks(names).items()):
        own = matrices[matrices["checkpoint"] == name]
        by_layer = own.groupby("layer")["sum"].sum()
        top.plot(by_layer / by_layer.sum(), color=look.color, marker=look.marker, markersize=3, label=short(name))
        ax = figure.add_subplot(grid[1 + i // 2, i % 2])
        mesh = own.pivot_table(index="module", columns="layer", values="mean").reindex(modules)
        drawn = ax.pcolormesh(np.arange(31) - 0.5, np.arange(len(modules) + 1) - 0.5, mesh, cmap="viridis", norm=norm)
        ax.set_yticks(range(len(modules)), modules, fontsize=7)
        ax.invert_yaxis()
        ax.set_title(short(name), fontsize=9)
        ax.set_xlabel("layer", fontsize=8)
        maps.append(ax)
    top.set(xlabel="layer", ylabel="share of the importance of all layers", ylim=(0, None))
    top.legend(frameon=False, fontsize=8, ncols=4, loc="lower left")
    figure.colorbar(drawn, ax=maps, label="nats a weight, one scale for all", pad=0.02)
    return figure


def evaluation() -> Figure:
    table = pd.read_csv(HERE / "evaluation" / "metrics.csv")
    names = list(table["checkpoint"].unique())
    table = table[(table["metric"] != "word_error_rate") | (table["task"] == "commands-transcription")]
    tasks = list(table["task"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.4 + 0.75 * len(tasks)), sharey=True, layout="constrained")
    for ax, metrics in zip(axes, (("word_error_rate", "accuracy"), ("following_rate",)), strict=True):
        for i, (name, look) in enumerate(looks(names).items()):
            own = table[(table["checkpoint"] == name) & table["metric"].isin(metrics)]
            for _, number in own.iterrows():
                place = tasks.index(number["task"]) + 0.11 * (i - (len(names) - 1) / 2)
                if number["value"] > 100:
                    where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center", "fontsize": 7}
                    ax.annotate(f"{number['value']:.0f} →", (0.995, place), color=look.color, **where)
                    continue
                reach = [[number["value"] - number["ci_low"]], [min(number["ci_high"], 100) - number["value"]]]
                errors = {"xerr": np.clip(reach, 0, None), "elinewidth": 1, "capsize": 2}
                ax.errorbar(number["value"], place, fmt=look.marker, color=look.color, markersize=4, **errors)
        ax.set(xlim=(-3, 112), xlabel="per cent", xticks=range(0, 101, 20))
        for row in range(1, len(tasks)):
            ax.axhline(row - 0.5, color="0.85", linewidth=0.6)
    axes[0].set(title="word error rate (first row, less is better), accuracy", ylim=(len(tasks) - 0.5, -0.5))
    axes[0].set_yticks(range(len(tasks)), [task.replace("commands-", "commands, ") for task in tasks])
    axes[1].set_title("responses in the asked-for form")
    of_arms = looks(names).values()
    handles = [plt.Line2D([], [], color=look.color, marker=look.marker, linestyle="none") for look in of_arms]
    figure.legend(handles, map(short, names), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def main() -> None:
    for folder in ("beyond_attention", "miniature_training"):
        save(eta(folder), HERE / folder / "eta")
    save(heads(), HERE / "heads" / "eta_heads")
    save(knockout(), HERE / "beyond_attention" / "knockout")
    save(ranking(), HERE / "beyond_attention" / "ranking")
    for name in ("vanilla_asr", "self_powered", "repaired", "four_tasks"):
        save(training(name), HERE / "miniature_training" / name)
    save(importance(), HERE / "text_ability" / "importance")
    save(evaluation(), HERE / "evaluation" / "evaluation")


if __name__ == "__main__":
    main()
