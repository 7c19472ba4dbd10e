"""The held-out losses of a training run, as `lsm-probe train` prints them."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from lsm_probe.console import text_console
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
            low, high = found[f"{gain}_low"], found[f"{gain}_high"]
            cells += [f"{found[f'eval_loss_{control}_shuffled']:.3f}", f"{found[gain]:.3f} [{low:.3f}, {high:.3f}]"]
        else:
            cells += ["–", "–"]
    return cells
