"""Sensitivity's output: the terminal table, the line about each result, and the report section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_probe.probes.sensitivity.plot import sensitivity_figure
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.page import Section, picture
from lsm_probe.runner.tables import NONE, Table, measured_on, shown, whose, with_interval


def sensitivity_table(results: Sequence[SensitivityResult]) -> Table:
    """D_i, D_s and info-eta: a row for each checkpoint and unit."""
    rows = []
    for result in results:
        for per in ("token", "response"):
            read = result.with_conventions(per=per)
            most = "/".join(dict.fromkeys(f"{ceiling:.2f}" for ceiling in read.ceilings()))
            info_eta = read.info_eta()
            numbers = (with_interval(read.instruction()), with_interval(read.source()), most)
            rows.append([result.name, per, *numbers, NONE if info_eta is None else with_interval(info_eta)])
    return Table(
        "dependence of the response on its instruction (D_i) and its source (D_s), in nats",
        ["checkpoint", "per", "D_i", "D_s", "maximum", "info-η"],
        rows,
        "95 % interval over utterances; maximum: log of the pool's size; info-η: –, if D_i or D_s may be 0",
        text_columns=2,
    )


def sensitivity_note(result: SensitivityResult) -> str:
    check = result.self_check
    pools = " and ".join(f"{round(float(np.exp(most)), 1):g}" for most in result.ceilings())
    pool = f"pools of {pools} ({result.conventions.pool}, sources)"
    scored = f"scores exact to {check['mean']:.0e} nats per token (bound {check['bound']:.0e})"
    return "; ".join([pool, f"responses: {whose(result)}", scored, *result.influence_notes()])


def sensitivity_section(measurement: Measurement, results: Sequence[SensitivityResult], everything: Any) -> Section:
    """Figure and table of responses that all checkpoints share, and of each checkpoint's own responses."""
    groups = [list(results), *([everything.own_words] if everything.own_words else [])]
    pictures = []
    for i, group in enumerate(groups):
        whose, figure = describe_responses(group), sensitivity_figure(group)
        figure.suptitle(f"{whose[0].upper()}{whose[1:]}")
        described = f"D_i and D_s of {whose}, by checkpoint and by token"
        pictures.append(picture(figure, f"sensitivity-{i}", described))
    return Section(
        measurement.name,
        "Sensitivity",
        "This measurement does not use attention. D_i compares the log-probability of the response under its own "
        "instruction with that under a pool of other instructions. D_s does the same for the source. If D_i or D_s is "
        "near 0, the response does not depend on the instruction or the source. info-η is D_i / (D_i + D_s). Numbers "
        "on the same response compare checkpoints. Numbers on each checkpoint's own response show what it depends on "
        "when it answers freely.",
        pictures,
        [_report_table(group) for group in groups],
    )


def describe_responses(results: Sequence[SensitivityResult]) -> str:
    """Names the responses that a group of results is measured on."""
    if all(result.of_own_words for result in results):
        return "each checkpoint's own response"
    alike = all(result.responses() == results[0].responses() for result in results)
    return "the same response" if alike else "the response"


def _report_table(results: Sequence[SensitivityResult]) -> Table:
    rows = []
    for result in results:
        eta = result.info_eta()
        rows.append(
            [result.name, shown(result.instruction()), shown(result.source()), NONE if eta is None else shown(eta)]
        )
    unit = f"nats per {results[0].conventions.per}"
    columns = ["", f"D_i (instruction), {unit}", f"D_s (source), {unit}", "info-η"]
    notes = [measured_on(results), *(f"{r.name}: {note}." for r in results for note in r.influence_notes())]
    return Table(f"Sensitivity of {describe_responses(results)}", columns, rows, " ".join(notes))
