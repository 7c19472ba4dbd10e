"""Text ability in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsm_probe.evaluation.mmlu import CHANCE, GROUPS
from lsm_probe.evaluation.text_ability_result import AVERAGE, Number, TextAbilityResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section
from lsm_probe.runner.tables import NONE, Table, shown


def text_ability_section(measurement: Measurement, results: Sequence[TextAbilityResult], everything: Any) -> Section:
    """MMLU and perplexity by checkpoint."""
    return Section(
        "text-ability",
        "Text ability",
        "What speech training cost the LLM on text alone.",
        tables=[_table(results)],
    )


def _table(results: Sequence[TextAbilityResult]) -> Table:
    mmlu, texts = any(r.accuracies for r in results), any(r.nats for r in results)
    names = [*GROUPS, AVERAGE] if mmlu else []
    columns = ["", *(name.replace("_", " ") for name in names), *(["nats per token", "perplexity"] if texts else [])]
    rows = []
    for result in results:
        numbers = [_number(result.accuracies.get(name), 1) for name in names]
        numbers += [_number(result.nats, 3), _number(result.perplexity, 2)] if texts else []
        rows.append([result.name, *numbers])
    note = f"MMLU accuracy in per cent; guessing gives {CHANCE:g} %." if mmlu else ""
    return Table("What is left of text ability", columns, rows, note)


def _number(number: Number | None, digits: int) -> str:
    return NONE if number is None else shown(number.curve, digits)
