"""The study's tables and pictures, from the results that are committed here alone.

python analyses/speech_anchor_bias/study.py  # writes arms.csv and figures/speech_anchor_bias
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

import lsm_probe
from lsm_probe.plots.files import save_figure, save_frame
from lsm_probe.probes.attention_result import AttentionResult
from lsm_probe.probes.controls import CONTROL
from lsm_probe.reports.finding import Comparison, last_group_eta, text_at_length

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURES = HERE.parents[1] / "figures" / "speech_anchor_bias"
ARMS = ("untrained", "vanilla_asr", "true_answers", "self_powered_one", "self_powered")
LLM = "builtin:llm"


def seeds() -> list[str]:
    return sorted(folder.name for folder in RESULTS.iterdir() if folder.is_dir())


def results(seed: str, part: str) -> dict[str, Any]:
    """Arm (its seed left out), or the LLM's name -> its result in a part of a seed's measurements."""
    folder = RESULTS / seed / part
    if not folder.is_dir():
        return {}
    found = lsm_probe.read_results([folder])
    group = [r for probe in vars(found).values() if isinstance(probe, list) for r in probe if hasattr(r, "checkpoint")]
    return {result.name.removesuffix(f"-{seed}"): result for result in group}


def curve(name: str, found: Any) -> dict[str, float]:
    return {name: float(found.mean), f"{name}_low": float(found.ci_low), f"{name}_high": float(found.ci_high)}


def attention_columns(found: dict[str, AttentionResult], arm: str, seed: str) -> dict[str, Any]:
    """Eta of the last group of layers: bare, against the text LLM at the same length, and by kind of instruction."""
    result, everything = found[arm], list(found.values())
    columns = curve("eta", last_group_eta(result))
    columns |= curve("eta_sum", last_group_eta(result.with_conventions(segment="sum")))
    for kind in ("trained", "held-out"):
        own = result.subset([sample for sample in result.ids if sample.endswith(f"/{kind}")])
        columns |= curve(f"eta_{kind}", last_group_eta(own))
    # All arms have the same connector and hear the same speech, so that one control serves them all.
    control = text_at_length(everything, found[LLM], result) or next(
        (r for name, r in found.items() if name.startswith(f"{LLM}{CONTROL}")), None
    )
    if arm != LLM and control is not None:
        compared = Comparison(result, control, "")
        columns |= curve("against_llm", compared.change())
        columns |= curve("against_llm_sum", compared.change(segment="sum"))
    return columns


def rows() -> Iterator[dict[str, Any]]:
    """One for each arm and seed, and one for the text LLM: whatever was measured of it."""
    for seed in seeds():
        parts = {path.name: results(seed, path.name) for path in (RESULTS / seed).iterdir()}
        for arm in (LLM, *ARMS):
            row: dict[str, Any] = {"arm": arm, "seed": int(seed)}
            if arm in (found := parts.get("attention", {})):
                row |= attention_columns(found, arm, seed)
            yield row


def arms() -> pd.DataFrame:
    return pd.DataFrame(rows())


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    save_frame(arms(), HERE / "arms.csv")
    figure, axes = plt.subplots(
        1, len(seeds()), figsize=(5 * len(seeds()), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, seed in zip(axes[0], seeds(), strict=True):
        found = results(seed, "attention")
        names = [LLM, *(name for name in found if CONTROL in name), *ARMS]
        for name in names:
            label = "LLM at speech length" if CONTROL in name else "LLM" if name == LLM else name
            ax.plot(found[name].eta().mean, "--" if CONTROL in name else "-", label=label)
        ax.set(title=f"seed {seed}", xlabel="layer", ylabel="η", ylim=(0, 1))
        ax.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    save_figure(figure, FIGURES / "eta")


if __name__ == "__main__":
    main()
