"""The tables of README.md, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

COLUMNS = {
    "where the answers look": {
        "eta": "η",
        "against_llm": "minus the text LLM at that length, `mean`",
        "against_llm_sum": "`sum`",
        "against_llm_same_words": "`mean`, SmolLM2's words",
    },
    "by other means": {
        "own_D_i": "D_i, own words",
        "own_D_s": "D_s, own words",
        "D_s": "D_s, SmolLM2's words",
        "without_instruction": "without the instruction",
        "without_source": "without the source",
        "agreement": "log P of SmolLM2's answers",
    },
    "states and weights": {
        "paired_cosine": "cosine",
        "cosine_gap": "cosine gap",
        "standardised_cka": "CKA, standardised",
        "standardised_retrieval": "R@1, standardised",
        "importance_depth": "mean layer of importance",
        "jensen_shannon": "shift, Jensen-Shannon",
        "rank_correlation": "rank correlation of layers",
    },
    "tasks": {
        "following": "asked-for form",
        "following_unseen": "the same, French and Spanish",
        "repeats": "hashtags, program: repeats the command",
        "right": "mood as SmolLM2 says",
        "right_true": "place, intent, capitals right",
        "wer": "word error rate, %",
    },
    "text": {
        "text": "instructions of training",
        "other_text": "other instructions",
    },
    "other voices": {
        "voices_against_llm": "η minus the text LLM's at that length",
        "voices_D_i": "D_i, own words",
        "voices_D_s": "D_s, own words",
        "voices_following": "asked-for form",
        "voices_right": "mood as SmolLM2 says",
        "voices_wer": "word error rate, %",
    },
    "real recordings": {
        "natural_eta": "η",
        "natural_against_llm": "minus the text LLM at that length",
        "natural_D_i": "D_i, own words",
        "natural_D_s": "D_s, own words",
    },
}
"""Table -> column of arms.csv -> its heading."""


def claims_table(claims: pd.DataFrame) -> str:
    lines = ["| where | claim | paper | ours, seed by seed | of | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for _, rows in claims.fillna("").groupby("key", sort=False):
        claim = rows.iloc[0]
        ours = ", ".join(with_interval(row["mean"], row["ci_low"], row["ci_high"]) for _, row in rows.iterrows())
        lines.append(f"| {claim.place} | {claim.says} | {claim.paper} | {ours} | {claim.unit} | **{claim.verdict}** |")
    return "\n".join(lines)


def arms_table(arms: pd.DataFrame, columns: dict[str, str]) -> str:
    """A row for each arm that has any of the columns, a number for each seed; one where the seeds agree."""
    lines = [" | ".join(["| arm", *columns.values()]) + " |", "| --- " * (1 + len(columns)) + "|"]
    for arm, rows in arms.groupby("arm", sort=False):
        if rows[list(columns)].notna().any(axis=None):
            lines.append(" | ".join([f"| `{arm}`", *(cell(rows, column) for column in columns)]) + " |")
    return "\n".join(lines)


def cell(rows: pd.DataFrame, column: str) -> str:
    ends = [f"{column}_low", f"{column}_high"] if f"{column}_low" in rows else []
    found = [with_interval(*values) for values in rows[[column, *ends]].itertuples(index=False)]
    return ", ".join(dict.fromkeys(found))


def with_interval(value: float, *ends: float) -> str:
    if pd.isna(value):
        return ""
    return shown(value) + (f" [{', '.join(map(shown, ends))}]" if ends else "")


def shown(value: float) -> str:
    digits = 3 if abs(value) < 0.01 else 2 if abs(value) < 10 else 1 if abs(value) < 20 else 0
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−").removesuffix(".000")


def tables(arms: pd.DataFrame, claims: pd.DataFrame) -> Sequence[str]:
    return [claims_table(claims), *(arms_table(arms, columns) for columns in COLUMNS.values())]
