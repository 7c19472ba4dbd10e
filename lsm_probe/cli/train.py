"""`lsm-probe train`: trains a checkpoint for the probes."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def train(
    config: opt.Preset,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings to change, such as machine.workers=4.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder. [default: runs/train/CONFIG]", metavar="FOLDER")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, steps, memory and the launch command.")
    ] = False,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    r"""Train a large speech-text model (LSM).

    The speech encoder stays frozen. The connector is trained. The LLM is trained in full, with LoRA adapters, or not at
    all. The loss covers the response only. Each evaluation also computes the held-out loss with the speech, and with
    the instructions, of other samples: if the loss does not rise, the model does not use them.

    `mini/...` presets train the built-in models. With probe_every, eta, D_i and D_s are measured during training.

    Examples:
        lsm-probe data commands --out commands
        lsm-probe train mini/vanilla_asr --out runs/vanilla
        lsm-probe train mini/commands strategy=lora connector_learning_rate=1e-3
        lsm-probe train self_powered --dry-run
        lsm-probe train self_powered train=[a.jsonl,b.jsonl] eval=held-out.jsonl
        torchrun --nproc-per-node 8 -m lsm_probe train self_powered train=a.jsonl
        lsm-probe attention --ckpt runs/vanilla/model

    Writes model/ (for --ckpt), report.json, history.json, history.png, bias.png (with probe_every), tensorboard/,
    config.yaml, and the last two checkpoint-* folders, from which --resume continues.
    """
    if dry_run:
        from lsm_probe.training.config import read_config
        from lsm_probe.training.estimate import estimate
        from lsm_probe.training.table import show_estimate

        arguments = [config, *(overrides or []), *(["--out", str(out)] if out else [])]
        show_estimate(estimate(read_config(config, overrides or []), arguments), as_json=json)
        return
    from json import dumps

    from lsm_probe.cli.progress import progress, quiet_transformers
    from lsm_probe.cli.stopping import RESUME, stoppable
    from lsm_probe.files import check_can_write

    if out is not None:
        check_can_write("--out", out, folder=True)
    is_main = os.environ.get("RANK", "0") == "0"
    with (
        stoppable(f"{RESUME} from the last checkpoint"),
        progress() if is_main else nullcontext(lambda *_, **__: None) as on_progress,
    ):
        on_progress("starting", 0, 1)  # on a slow disk, importing torch and transformers takes long
        from lsm_probe.distributed import init_distributed
        from lsm_probe.runner.picture_files import report_drawing_failure
        from lsm_probe.training.config import presets, read_config
        from lsm_probe.training.plot import save_histories
        from lsm_probe.training.run import train
        from lsm_probe.training.table import show_report

        settings = read_config(config, overrides or [])
        out = out or Path("runs") / "train" / (config if config in presets() else Path(config).stem)
        quiet_transformers()
        init_distributed(cpu=settings.machine.device == "cpu")
        check_can_write("--out", out, folder=True)
        on_progress("starting", 1, 1)
        report = train(settings, out, resume=resume, on_error=on_error, on_progress=on_progress)
    if not is_main:
        return
    try:
        with report_drawing_failure(out):
            save_histories(out)
    finally:
        if json:
            print(dumps(report, ensure_ascii=False))
        else:
            show_report(report)
