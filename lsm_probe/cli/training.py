"""What `lsm-probe train` shows: progress with loss and tokens per second, then the held-out losses."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.table import Table

from lsm_probe.cli.console import text_console
from lsm_probe.cli.drawing import report_drawing_failure
from lsm_probe.cli.progress import progress, quiet_transformers
from lsm_probe.cli.stopping import RESUME, stoppable
from lsm_probe.data.problems import OnError
from lsm_probe.distributed import init_distributed
from lsm_probe.files import check_can_write
from lsm_probe.training.config import TrainConfig
from lsm_probe.training.held_out_loss import CONTROLS
from lsm_probe.training.plot import save_history
from lsm_probe.training.run import train


def train_and_report(config: TrainConfig, out: Path, *, resume: bool, on_error: OnError, as_json: bool) -> None:
    """Trains, draws the losses, and shows what came out; of several processes the main one speaks."""
    quiet_transformers()
    main = init_distributed(cpu=config.machine.device == "cpu").is_main_process
    check_can_write("--out", out, folder=True)
    shown = progress() if main else nullcontext(lambda *_: None)
    with stoppable(f"{RESUME} from the last checkpoint"), shown as on_progress:
        report = train(config, out, resume=resume, on_error=on_error, on_progress=on_progress)
    if not main:
        return
    try:
        with report_drawing_failure(out):
            for history in sorted([out / "history.json", *out.glob("*/history.json")]):
                if history.exists():
                    save_history(history)
    finally:
        if as_json:
            print(json.dumps(report, ensure_ascii=False))
        else:
            _show(report)


def _show(report: dict[str, Any]) -> None:
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
