"""Sensitivity in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsm_probe.probes.sensitivity.plot import sensitivity_figure
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.tables import NONE, Table, measured_on, shown


def sensitivity_section(measurement: Measurement, results: Sequence[SensitivityResult], everything: Any) -> Section:
    """Figure and table of the responses that all checkpoints share, and of each checkpoint's own."""
    groups = [list(results), *([everything.own_words] if everything.own_words else [])]
    pictures = []
    for i, group in enumerate(groups):
        whose, figure = describe_responses(group), sensitivity_figure(group)
        figure.suptitle(f"{whose[0].upper()}{whose[1:]}")
        described = f"What instruction and source are worth to {whose}, by checkpoint and along it"
        pictures.append(picture(figure, f"sensitivity-{i}", described))
    return Section(
        measurement.name,
        "Sensitivity",
        "Without looking at attention: D is how much likelier the response is under its own instruction (its own "
        "source) than under a pool of others. Near 0, it is ignored. info-η is the instruction's part of both. On "
        "shared responses checkpoints can be compared; on its own a checkpoint shows what it goes by.",
        pictures,
        [_table(group) for group in groups],
    )


def describe_responses(results: Sequence[SensitivityResult]) -> str:
    """Which response a group of results is measured on."""
    if all(result.of_own_words for result in results):
        return "each checkpoint's own response"
    alike = all(result.responses() == results[0].responses() for result in results)
    return "the same response" if alike else "the response"


def _table(results: Sequence[SensitivityResult]) -> Table:
    rows = []
    for result in results:
        eta = result.info_eta()
        rows.append(
            [result.name, shown(result.instruction()), shown(result.source()), NONE if eta is None else shown(eta)]
        )
    unit = f"nats per {results[0].conventions.per}"
    columns = ["", f"D of the instruction, {unit}", f"D of the source, {unit}", "info-η"]
    return Table(
        f"What instruction and source are worth to {describe_responses(results)}", columns, rows, measured_on(results)
    )
