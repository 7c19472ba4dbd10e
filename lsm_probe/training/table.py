"""What `lsm-probe train` prints: a run's held-out losses, and with `--dry-run` its parameters, steps and memory."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from rich.table import Table

from lsm_probe.console import text_console
from lsm_probe.runner.result import Curve
from lsm_probe.runner.tables import with_interval
from lsm_probe.training.estimate import GIB, Estimate, StageEstimate
from lsm_probe.training.held_out_loss import CONTROLS


def show_report(report: dict[str, Any]) -> None:
    """Prints the held-out losses and sizes of each stage on stdout."""
    console = text_console()
    table = Table(
        title="held-out loss, nats per response token",
        caption="shuffled: with another sample's; gain: shuffled minus true, with 95 % interval over utterances",
    )
    table.add_column("stage")
    for heading in ("true", *(f"{control} {column}" for control in CONTROLS for column in ("shuffled", "gain"))):
        table.add_column(heading, justify="right")
    for stage in report["stages"]:
        if found := stage["evaluation"]:
            table.add_row(stage["stage"], f"{found['eval_loss']:.3f}", *_cells(found))
    if table.row_count:
        console.print(table)
    for stage in report["stages"]:
        parameters = stage["parameters"]
        console.print(
            f"{stage['stage']}: {stage['steps']} steps, {stage['samples']} samples, {parameters['trained']:,} of "
            f"{parameters['all']:,} parameters trained, {stage['seconds']:,.0f} s",
            highlight=False,
        )
    console.print(f"look into it: lsm-probe attention --ckpt {report['model']}", highlight=False)


def _cells(found: dict[str, float]) -> list[str]:
    cells = []
    for control in CONTROLS:
        gain = f"eval_{control}_gain"
        if gain in found:
            numbers = (np.asarray(found.get(key, math.nan)) for key in (gain, f"{gain}_low", f"{gain}_high"))
            cells += [f"{found[f'eval_loss_{control}_shuffled']:.3f}", with_interval(Curve(*numbers))]
        else:
            cells += ["–", "–"]
    return cells


def show_estimate(estimate: Estimate, as_json: bool) -> None:
    """Prints an estimate on stdout: tables, or one JSON object."""
    if as_json:
        print(json.dumps(estimate.to_dict(), ensure_ascii=False))
        return
    console = text_console(soft_wrap=False, highlight=False)
    for stage in estimate.stages:
        console.print(_parts_table(stage))
        console.print(f"{_data_line(stage)}\n{_steps_line(stage)}\n")
    console.print(_memory_table(estimate.stages))
    console.print(f"memory is estimated for {estimate.assumptions}\n")
    console.print(estimate.launch, soft_wrap=True)


def _parts_table(stage: StageEstimate) -> Table:
    table = Table(title=f"stage {stage.name}: {stage.strategy}", title_justify="left")
    table.add_column("part", min_width=16)
    for heading in ("parameters", "trained", "share"):
        table.add_column(heading, justify="right")
    for part in stage.parts:
        _add_counts(table, part.name, part.parameters, part.trainable)
    table.add_section()
    _add_counts(table, "all", stage.parameters, stage.trainable)
    return table


def _add_counts(table: Table, name: str, parameters: int, trained: int) -> None:
    table.add_row(name, f"{parameters:,}", f"{trained:,}", f"{trained / parameters:.1%}")


def _data_line(stage: StageEstimate) -> str:
    samples = "unknown" if stage.samples is None else f"{stage.samples:,}"
    return f"samples: {samples} ({stage.samples_from})"


def _steps_line(stage: StageEstimate) -> str:
    passes = f"{stage.accumulation} forward pass{'es' if stage.accumulation > 1 else ''} on each device"
    steps = "unknown" if stage.steps is None else f"{stage.steps:,}, the first {stage.warmup_steps:,} warm-up"
    return f"optimizer steps: {steps}; one is {stage.batch_size:,} samples, {passes}"


def _memory_table(stages: tuple[StageEstimate, ...]) -> Table:
    """A row for each thing that memory holds, a column for each stage."""
    table = Table(title="memory of each device, GiB", title_justify="left")
    table.add_column("what", min_width=16)
    for stage in stages:
        table.add_column(stage.name, justify="right")
    for name in dict.fromkeys(name for stage in stages for name in stage.memory):
        table.add_row(name, *(f"{stage.memory.get(name, 0) / GIB:.2f}" for stage in stages))
    table.add_section()
    table.add_row("all", *(f"{sum(stage.memory.values()) / GIB:.2f}" for stage in stages))
    return table
