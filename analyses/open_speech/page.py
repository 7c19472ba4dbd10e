"""Write the tables of this folder's README from `arms.json` and the CSV files: python analyses/open_speech/page.py"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).parent
ARMS = ("vanilla_asr", "self_powered", "one_instruction", "true_answers")
KINDS = {
    "builtin:llm": "text LLM",
    "builtin:open_vanilla_asr": "transcription (the start)",
    "self_powered-0": "all eight kinds",
    "without_one_word-0": "all but the one-word kinds",
    "without_free-0": "all but title and items",
    "only_one_word-0": "only the one-word kinds",
    "only_free-0": "only title and items",
}
"""Checkpoints of `kinds.csv`, and what they were trained on."""
CONDITIONS = {
    "as they are": "as they are",
    "noise-10dB": "white noise, 10 dB below the speech",
    "speed-1.25": "1.25 times as fast",
    "voice-kal16": "48 other sentences, flite's voice kal16",
}
"""Conditions of `disturbed.csv`."""
WAYS = {"layerwise": "adapters, layer-wise rates", "full": "full training"}
"""Checkpoints of `ways.csv`, without their seeds."""
COLUMNS = {
    "D_i": ("instruction_sensitivity", 2),
    "D_s": ("source_sensitivity", 2),
    "word error rate, %": ("transcription_error", 0),
    "only repeats": ("repeat_share", 2),
    "asked-for form": ("form_share", 2),
    "η, last sixth": ("eta_last_sixth", 2),
}


def main() -> None:
    page = HERE / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The page with its tables written again."""
    diagnosis = json.loads((HERE / "arms.json").read_text(encoding="utf-8"))
    tables = {"arms": arms(diagnosis)}
    for name, table in {"claims": claims, "kinds": kinds, "ways": ways, "disturbed": disturbed}.items():
        tables[name] = table(pd.read_csv(HERE / f"{name}.csv"))
    for name, lines in tables.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        text = before + start + "\n".join(lines) + "\n" + rest[rest.index("<!-- end -->") :]
    return text


def arms(diagnosis: dict[str, Any]) -> Iterator[str]:
    """A row for each arm and seed, and one for the text LLM."""
    by_name = {each["checkpoint"]: each for each in diagnosis["checkpoints"]}
    yield f"| arm, seed | verdict | {' | '.join(COLUMNS)} |"
    yield "| --- " * (len(COLUMNS) + 2) + "|"
    names = sorted(by_name.keys() - {"builtin:llm"}, key=lambda name: (ARMS.index(name[:-2]), name))
    for name in [*names, "builtin:llm"]:
        evidence = {each["key"]: each for each in by_name[name]["evidence"]}
        cells = [number(evidence.get(key), digits) for key, digits in COLUMNS.values()]
        label = "text LLM" if name == "builtin:llm" else f"`{name[:-2]}`, {name[-1]}"
        yield f"| {label} | {by_name[name]['verdict'].partition(' (')[0]} | {' | '.join(cells)} |"


def claims(table: pd.DataFrame) -> Iterator[str]:
    seeds = sorted(table["seed"].unique())
    yield f"| claim | number | {' | '.join(f'seed {seed}' for seed in seeds)} | result |"
    yield "| --- " * (len(seeds) + 3) + "|"
    for _, rows in table.groupby("key", sort=False):
        digits = 0 if rows["number"].iloc[0] == "word error rate" else 2
        cells = [shown(*values, digits) for values in rows[["mean", "ci_low", "ci_high"]].to_numpy()]
        first = rows.iloc[0]
        yield f"| {first['says']} | {first['number']} | {' | '.join(cells)} | {first['verdict']} |"


def kinds(table: pd.DataFrame) -> Iterator[str]:
    """A row for each checkpoint: D_i of both groups of kinds, its difference from all kinds, and repetitions."""
    yield f"| trained on {'| D_i | minus all kinds | only repeat ' * 2}|"
    yield "| --- " * 7 + "|"
    found = table.set_index(["checkpoint", "asked"])
    for name, label in KINDS.items():
        cells = []
        for row in (found.loc[(name, group)] for group in ("one word", "free")):
            cells += [shown(*row[[key, f"{key}_low", f"{key}_high"]], 2) for key in ("d_i", "minus_all")]
            cells.append(f"{row['repeats']:.0f} of {row['responses']:.0f}")
        yield f"| {label} | {' | '.join('–' if 'nan' in cell else cell for cell in cells)} |"


def ways(table: pd.DataFrame) -> Iterator[str]:
    """A row for each pair of checkpoints: their differences."""
    yield "| seed | difference | D_i | D_s | word error rate | loss on SmolLM2's answers | loss on sentences |"
    yield "| --- " * 7 + "|"
    named = {"self_powered": "adapters − text LLM"} | {way: f"{label} − adapters" for way, label in WAYS.items()}
    for (seed, name), rows in table.groupby(["seed", "second"], sort=False):
        found = rows.set_index("number")[["mean", "ci_low", "ci_high"]]
        cells = [
            shown(*found.loc[key], 0 if key == "word error rate" else 2) if key in found.index else "–"
            for key in ("D_i", "D_s", "word error rate", "answers", "sentences")
        ]
        yield f"| {seed} | {named[name.rpartition('-')[0]]} | {' | '.join(cells)} |"


def disturbed(table: pd.DataFrame) -> Iterator[str]:
    """A row for each condition and checkpoint."""
    yield "| clips | checkpoint | verdict | D_i | D_s | word error rate, % | only repeats |"
    yield "| --- " * 7 + "|"
    for (condition, name), rows in table.groupby(["condition", "checkpoint"], sort=False):
        found = rows.set_index("number")[["mean", "ci_low", "ci_high"]]
        digits = {"D_i": 2, "D_s": 2, "word error rate": 0, "repeats": 2}
        cells = [shown(*found.loc[key], places) for key, places in digits.items()]
        verdict = rows["verdict"].iloc[0].partition(" (")[0]
        named = f"{CONDITIONS[condition]} | {name.removeprefix('builtin:open_')} | {verdict}"
        yield f"| {named} | {' | '.join(cells)} |"


def number(evidence: dict[str, Any] | None, digits: int) -> str:
    if evidence is None or evidence["value"] is None:
        return "–"
    return shown(evidence["value"], evidence["ci_low"], evidence["ci_high"], digits)


def shown(value: float, low: float, high: float, digits: int) -> str:
    mean, low, high = (f"{each:.{digits}f}".replace("-", "−") for each in (value, low, high))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
