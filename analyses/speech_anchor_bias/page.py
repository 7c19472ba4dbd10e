"""Write the tables of README.md as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

COLUMNS = {
    "where the answers look": {
        "eta": "η",
        "against_llm_own_length": "minus the text LLM at its own length, `mean`",
        "against_llm_own_length_sum": "`sum`",
        "against_llm": "minus the text LLM at the speech's length, `mean`",
        "against_llm_sum": "`sum`",
    },
    "by other means": {
        "own_D_i": "D_i, own words (8 utterances)",
        "own_D_s": "D_s, own words (8)",
        "D_s": "D_s, SmolLM2's words (12)",
        "without_instruction": "without the instruction (6)",
        "without_source": "without the speech (6)",
        "agreement": "log P of SmolLM2's answers (12)",
    },
    "states and weights": {
        "paired_cosine": "cosine (24 utterances)",
        "cosine_gap": "cosine gap (24)",
        "standardised_cka": "CKA, standardised (24)",
        "standardised_retrieval": "R@1, standardised (24)",
        "importance_depth": "mean layer of importance (12)",
        "jensen_shannon": "shift, Jensen-Shannon (12)",
        "rank_correlation": "rank correlation of layers (12)",
    },
    "tasks": {
        "following": "asked-for form",
        "following_unseen": "French and Spanish: language",
        "repeats": "hashtags, program: repeats the command",
        "right": "mood as SmolLM2 says",
        "right_true": "place, intent, capitals right",
        "wer": "word error rate, %",
    },
    "text": {
        "text": "instructions of training (48 utterances)",
        "other_text": "other instructions (96)",
    },
    "other voices": {
        "voices_against_llm": "η minus the text LLM's at the speech's length (24 utterances)",
        "voices_D_i": "D_i, own words (8)",
        "voices_D_s": "D_s, own words (8)",
        "voices_following": "asked-for form (24)",
        "voices_right": "mood as SmolLM2 says (24)",
        "voices_wer": "word error rate, % (24)",
    },
}
"""Table -> column of arms.csv -> its heading."""


CLAIMS_HEAD = (
    *("row", "where", "claim", "compared with", "paper", "ours, seed 0, then seed 1", "with one utterance left out"),
    *("of", "utterances", "verdict"),
)


def claims_table(claims: pd.DataFrame) -> str:
    lines = [row(CLAIMS_HEAD), row(["---"] * len(CLAIMS_HEAD))]
    for _, rows in claims.fillna({"place": "ours", "paper": "", "against": ""}).groupby("key", sort=False):
        claim = rows.iloc[0]
        ours = ", ".join(with_interval(*ends) for ends in rows[["mean", "ci_low", "ci_high"]].itertuples(index=False))
        without = ", ".join(
            between(*ends) for ends in rows[["without_one_low", "without_one_high"]].itertuples(index=False)
        )
        about = (
            f"`{claim.key}`",
            claim.place,
            claim.says,
            claim.against,
            claim.paper,
            ours,
            without,
            claim.unit,
            str(claim.utterances),
        )
        lines.append(row([*about, f"**{claim.verdict}**"]))
    return "\n".join(lines)


def headline_table(headline: pd.DataFrame) -> str:
    """Headline numbers of seed 0 and their range without one utterance; also on 48 other utterances if measured."""
    head = ("arm", "number", "on", "value", "with one utterance left out", "utterances")
    lines = [row(head), row(["---"] * len(head))]
    for _, r in headline.iterrows():
        value = with_interval(r["mean"], r["ci_low"], r["ci_high"])
        without = between(r["without_one_low"], r["without_one_high"])
        name = "η" if r["number"] == "eta" else r["number"]
        lines.append(row([f"`{r['arm']}`", name, r["measured"], value, without, str(r["utterances"])]))
    return "\n".join(lines)


def coverage_table(coverage: pd.DataFrame) -> str:
    """Every claim of both papers, and the measurement that tests it."""
    head = ("paper", "where", "claim", "tested by", "remark")
    lines = [row(head), row(["---"] * len(head))]
    for paper, place, claim, tested, remark in coverage.fillna("").itertuples(index=False):
        links = [
            f"[{t}](../{t.removeprefix('analyses/')}/README.md)" if t.startswith("analyses/") else f"`{t}`"
            for t in tested.split()
        ]
        lines.append(row([paper, place, claim, tested if tested == "not run" else ", ".join(links), remark]))
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def between(low: float, high: float) -> str:
    return "" if pd.isna(low) else f"{shown(low)} to {shown(high)}"


def arms_table(arms: pd.DataFrame, columns: dict[str, str]) -> str:
    """One row per arm that has any of the columns, with one number per seed, or one number if the seeds agree."""
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


def tables(arms: pd.DataFrame, claims: pd.DataFrame, headline: pd.DataFrame, coverage: pd.DataFrame) -> Sequence[str]:
    tables = [claims_table(claims), headline_table(headline), coverage_table(coverage)]
    return [*tables, *(arms_table(arms, columns) for columns in COLUMNS.values())]
