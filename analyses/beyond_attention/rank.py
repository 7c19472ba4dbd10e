"""Compare how norm-based eta, sensitivity, knockout and alignment rank checkpoints.

Usage: python analyses/beyond_attention/rank.py RUNS
RUNS holds the folders attention, sensitivity, knockout and alignment that the commands of README.md write. Writes
ranking.csv and ranking.json here, and figures/beyond_attention/ranking.png, .svg.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from lsm_probe.files import replacing
from lsm_probe.probes.alignment.result import AlignmentResult
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.knockout.result import KnockoutResult
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.runner.checkpoint_styles import assign_styles
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.picture_files import save_figure, save_frame
from lsm_probe.runner.result import MeasurementResult
from lsm_probe.runner.style import new_figure, with_own_settings

HERE = Path(__file__).parent
FIGURES = HERE.parent.parent / "figures" / HERE.name
LLM = "builtin:llm"


def main() -> None:
    runs = Path(sys.argv[1])
    measures: dict[str, dict[str, float]] = {}
    for result in _load(AttentionResult, runs / "attention"):
        for segment in ("mean", "sum"):
            eta = result.with_conventions(segment=segment).eta().mean
            measures.setdefault(_name(result), {})[f"eta ({segment}), all layers"] = float(eta.mean())
    for result in _load(SensitivityResult, runs / "sensitivity"):
        measures[_name(result)] |= {
            "D_instruction": float(result.instruction().mean),
            "D_source": float(result.source().mean),
        }
    for result in _load(KnockoutResult, runs / "knockout"):
        falls = result.fall_all_layers.astype(float).mean(0)
        measures[_name(result)] |= {"knockout: instruction": falls[0], "knockout: source": falls[1]}
    for result in _load(AlignmentResult, runs / "alignment"):
        last = result.to_frame().iloc[
            -1
        ]  # standardised, because the offset between speech and text dominates the plain numbers
        measures[_name(result)] |= {"CKA": last["standardised_cka"], "R@1": last["standardised_retrieval"]}
    frame = pd.DataFrame(measures).T
    save_frame(frame.reset_index(names="checkpoint"), HERE / "ranking.csv")
    agreement = _agreement(frame)
    with replacing(HERE / "ranking.json") as path:
        path.write_text(json.dumps(agreement, indent=1) + "\n", encoding="utf-8")
    FIGURES.mkdir(parents=True, exist_ok=True)
    save_figure(draw(frame), FIGURES / "ranking")
    print(frame.round(3).to_string(), json.dumps(agreement, indent=1), sep="\n")


def _load(kind: Callable[..., Any], folder: Path) -> list[Any]:
    """The results of a run over several checkpoints, length-matched controls left out."""
    found = [kind.load(path.parent) for path in sorted(folder.glob("*/result.json"))]
    return [result for result in found if not result.is_control]


def _name(result: MeasurementResult) -> str:
    """`runs/vanilla/model` is called vanilla."""
    path = Path(result.name)
    return path.parent.name if path.name == "model" else result.name


def _agreement(frame: pd.DataFrame) -> dict[str, Any]:
    """Spearman's rank correlation over the checkpoints that have both measures; None for fewer than four."""
    table: dict[str, Any] = {}
    for first in frame.columns:
        for second in frame.columns:
            both = frame[[first, second]].dropna() if first != second else pd.DataFrame()
            if first < second and len(both) >= 4:
                table[f"{first} ~ {second}"] = round(float(spearmanr(both[first], both[second]).statistic), 3)
    return table


@with_own_settings
def draw(frame: pd.DataFrame) -> Figure:
    """A panel for each measure, with a bar for each checkpoint in the colour that it has in other figures."""
    styles = assign_styles(
        CheckpointIdentity(name=name, source="text" if name == LLM else "speech", template="", dtype="")
        for name in frame.index
    )
    figure = new_figure(10, 4.6)
    grid = figure.subplots(2, 4, sharey=True)
    for ax, (column, values) in zip(grid.flat, frame.items(), strict=True):
        bars = ax.barh(frame.index, values.fillna(0), color=[styles[name].color for name in frame.index])
        ax.bar_label(bars, ["" if np.isnan(value) else f"{value:.2f}" for value in values], padding=2, fontsize=8)
        ax.set_title(column, fontsize=10)
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.margins(x=0.25)
    grid[0, 0].invert_yaxis()
    return figure


if __name__ == "__main__":
    main()
