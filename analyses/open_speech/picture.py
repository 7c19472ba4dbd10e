"""Draw `figures/open_speech/arms.png` from `arms.json`: python analyses/open_speech/picture.py"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from page import ARMS

from lsm_probe.runner.checkpoint_styles import NEUTRAL, CheckpointStyle, assign_styles
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.style import with_own_settings

HERE = Path(__file__).parent
PANELS = {
    "instruction_sensitivity": "D_i, nats per token",
    "source_sensitivity": "D_s, nats per token",
    "eta_last_sixth": "η, last sixth of the layers",
}


def main() -> None:
    out = HERE.parents[1] / "figures" / "open_speech"
    out.mkdir(exist_ok=True)
    arms_figure().savefig(out / "arms.png", dpi=150)


@with_own_settings
def arms_figure() -> Figure:
    """D_i, D_s and η of each arm and seed, with 95 % intervals."""
    checkpoints = json.loads((HERE / "arms.json").read_text(encoding="utf-8"))["checkpoints"]
    evidence = {each["checkpoint"]: {item["key"]: item for item in each["evidence"]} for each in checkpoints}
    names = sorted(evidence.keys() - {"builtin:llm"}, key=lambda name: (ARMS.index(name[:-2]), name))
    styles = assign_styles(
        CheckpointIdentity(name=name, source="speech", template="chat", dtype="float32") for name in names
    )
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 3.6), sharey=True, layout="constrained")
    rows = {name: ARMS.index(name[:-2]) + (int(name[-1]) - 1) / 4 for name in names} | {"builtin:llm": len(ARMS)}
    for axis, (key, label) in zip(axes, PANELS.items(), strict=True):
        for name, row in rows.items():
            draw(axis, evidence[name][key], row, styles.get(name, NEUTRAL))
        axis.set(xlabel=label, xlim=(0, None))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set(yticks=range(len(ARMS) + 1), yticklabels=[*ARMS, "text LLM"])
    axes[0].invert_yaxis()
    return figure


def draw(axis: plt.Axes, item: dict[str, float], row: float, style: CheckpointStyle) -> None:
    low, high = item["value"] - item["ci_low"], item["ci_high"] - item["value"]
    axis.errorbar(item["value"], row, xerr=[[low], [high]], color=style.color, marker=style.marker, capsize=2)


if __name__ == "__main__":
    main()
