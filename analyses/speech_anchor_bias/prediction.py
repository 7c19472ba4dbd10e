"""Write `prediction.csv`: rank correlations of each probe with instruction following, over arms and seeds."""

from __future__ import annotations

import pandas as pd
from measured import CASCADE, LLM
from scipy.stats import spearmanr

PROBES = {
    "against_llm": "η minus the text LLM's",
    "eta": "η",
    "eta_sum": "η by sum",
    "eta_same_words": "η, SmolLM2's words",
    "own_D_i": "D_i, own words",
    "own_D_s": "D_s, own words",
    "D_i": "D_i, SmolLM2's words",
    "D_s": "D_s, SmolLM2's words",
    "without_instruction": "knockout of the instruction",
    "without_source": "knockout of the source",
    "paired_cosine": "cosine, last state",
    "cosine_gap": "cosine gap",
    "standardised_cka": "CKA, standardised",
    "standardised_retrieval": "R@1, standardised",
    "jensen_shannon": "shift of importance",
    "other_text": "nats per token of text",
}
"""Column of arms.csv -> name of the probe in the figure. No probe uses the correct answer."""
OUTCOMES = {"following": "asked-for form", "agreement": "log P of\nSmolLM2's answers"}
"""Per cent of responses; nats per token. Only the second also depends on the content of the speech."""


def prediction(arms: pd.DataFrame) -> pd.DataFrame:
    """One row per probe: Spearman's rho with each outcome, over all arms and seeds and over the trained ones."""
    lsms = arms[~arms["arm"].isin([LLM, CASCADE])]
    trained = lsms[lsms["arm"] != "untrained"]
    rows = []
    for probe in PROBES:
        row: dict[str, object] = {"probe": probe}
        for name, group in (("all", lsms), ("trained", trained)):
            for outcome in OUTCOMES:
                row[f"{outcome}_{name}"] = float(spearmanr(group[probe], group[outcome]).statistic)
            row[f"n_{name}"] = len(group)
        rows.append(row)
    return pd.DataFrame(rows).sort_values("agreement_all", key=abs, ascending=False, kind="stable")
