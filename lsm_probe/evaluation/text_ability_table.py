"""The table of text ability, in the terminal and in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsm_probe.evaluation.mmlu import CHANCE, GROUPS, SUBJECTS
from lsm_probe.evaluation.text_ability_result import AVERAGE, Estimate, TextAbilityResult
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section
from lsm_probe.runner.tables import NONE, UNKNOWN, Table

_TITLES = {"stem": "STEM", "humanities": "Humanities", "social_sciences": "Social sciences", "other": "Other"}
_MMLU = (*GROUPS, AVERAGE)


def text_ability_table(results: Sequence[TextAbilityResult], *, forgetting: bool = True) -> Table:
    """A row for each checkpoint, columns as in Table 6 of arXiv 2410.03798; below, the forgetting rates relative to the
    first checkpoint."""
    mmlu, texts = any(result.accuracies for result in results), any(result.nats for result in results)
    rows = []
    for result in results:
        numbers = [result.accuracies.get(name) for name in _MMLU] if mmlu else []
        cells = [*map(_cell, numbers), *([_cell(result.nats, 3), _cell(result.perplexity, 2)] if texts else [])]
        rows.append([result.name, *cells])
    for result in results[1:] if forgetting else ():
        rows.append([f"{result.name}: forgotten", *_forgotten(results[0], result, mmlu, texts)])
    columns = [*([*_TITLES.values(), "average"] if mmlu else []), *(["nats per token", "perplexity"] if texts else [])]
    guessing = f"; guessing gives {CHANCE:g} %" if mmlu else ""
    guessing += "; – where the first checkpoint does not score above guessing" if mmlu and forgetting else ""
    return Table(
        f"text ability{': MMLU accuracy in per cent' if mmlu else ''}",
        ["checkpoint", *columns],
        rows,
        f"95 % interval over questions or texts{guessing}",
        lines=range(len(results) - 1, len(rows) - 1),
    )


def text_ability_section(measurement: Measurement, results: Sequence[TextAbilityResult], everything: Any) -> Section:
    """MMLU and perplexity by checkpoint. A report does not know which checkpoint the others were trained from."""
    intro = (
        "How well the LLM inside each checkpoint does on text alone: MMLU accuracy and perplexity. Compare each "
        "checkpoint with the LLM before speech training."
    )
    return Section("text-ability", measurement.title, intro, tables=[text_ability_table(results, forgetting=False)])


def text_ability_note(result: TextAbilityResult) -> str:
    notes = []
    if result.accuracies:
        letters = ", ".join(f"{letter} {share:.0f} %" for letter, share in result.chosen.items())
        cut = f", {result.cut} prompts cut to fit the context" if result.cut else ""
        notes.append(
            f"MMLU: {result.accuracies[AVERAGE].n} questions of {len(result.subjects)} of {SUBJECTS} subjects, "
            f"{result.conventions.shots} shots{cut}, answered {letters}"
        )
    if result.nats is not None:
        notes.append(f"perplexity: {result.nats.n} texts of {result.tokens} tokens in all")
    return "; ".join(notes)


def _forgotten(before: TextAbilityResult, after: TextAbilityResult, mmlu: bool, texts: bool) -> list[str]:
    """Forgetting rates of MMLU above chance, increase of nats per token, ratio of the perplexities."""
    pair = compare([before, after])["pairs"][0]
    rates, perplexity = pair.get("mmlu") or {}, pair.get("perplexity") or {}
    told = {name for name, rate in rates.items() if rate.get("forgetting_rate_above_chance")}
    cells = [_interval(rates[name]["forgetting_rate"] if name in told else None, 1) for name in _MMLU] if mmlu else []
    if texts:
        cells += [_interval(perplexity.get("difference"), 3, "+"), _interval(perplexity.get("ratio"), 2, before="× ")]
    return cells


def _cell(number: Estimate | None, digits: int = 1) -> str:
    return NONE if number is None else _interval(number.curve.to_dict(), digits)


def _interval(curve: dict[str, Any] | None, digits: int, sign: str = "", *, before: str = "") -> str:
    """On two lines, because seven columns of numbers with intervals are too wide for a terminal."""
    if curve is None:
        return NONE
    numbers = [curve[end] for end in ("mean", "ci_low", "ci_high")]
    if numbers[0] is None:
        return NONE
    mean, *ends = ("" if number is None else f"{number:{sign}.{digits}f}" for number in numbers)
    return f"{before}{mean}\n[{', '.join(ends) if all(ends) else UNKNOWN}]"
