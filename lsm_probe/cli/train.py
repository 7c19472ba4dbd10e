"""`lsm-probe train`: the checkpoints that the probes look into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt

EXAMPLES = """
Trains a large speech-text model: Whisper's encoder frozen, a connector, and an LLM that is trained whole, through
adapters (LoRA) or not at all. The loss is that of the response alone. At every evaluation the held-out loss is also
taken with the speech, and with the instructions, of other samples: does the model use them at all?

CONFIG is a preset or a YAML file; KEY=VALUE changes settings (`machine.workers=4`, `train=[a.jsonl,b.jsonl]`).

Examples:

    lsm-probe data commands --out commands

    lsm-probe train mini/vanilla_asr --out runs/vanilla

    lsm-probe train mini/commands strategy=lora connector_learning_rate=1e-3 --out runs/lora

    lsm-probe train self_powered --dry-run

    lsm-probe train self_powered train=self-powered/manifest.jsonl eval=held-out.jsonl --out runs/self-powered

    torchrun --nproc-per-node 8 -m lsm_probe train self_powered train=self-powered/manifest.jsonl --out runs/sp

    lsm-probe attention --ckpt runs/vanilla/model --ckpt runs/sp/model

Writes model/ (what --ckpt takes), report.json, history.json and history.png (losses), tensorboard/, config.yaml, and
the last two checkpoint-* folders, from which --resume goes on after a kill at any moment.
"""


def train(
    config: Annotated[str, typer.Argument(help="Name of a preset, or a YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder.  [default: runs/train/CONFIG]", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, steps, memory and launch line; load nothing.")
    ] = False,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    from lsm_probe.training.config import presets, read_config

    settings = read_config(config, overrides or [])
    if dry_run:
        from lsm_probe.cli.dry_run import show_estimate
        from lsm_probe.training.estimate import estimate

        arguments = [config, *(overrides or []), *(["--out", str(out)] if out else [])]
        show_estimate(estimate(settings, arguments), as_json=json)
        return
    from lsm_probe.cli.training import train_and_report

    train_and_report(
        settings,
        out or Path("runs") / "train" / (config if config in presets() else Path(config).stem),
        resume=resume,
        on_error=opt.one_of("--on-error", on_error, "fail", "skip"),
        as_json=json,
    )


train.__doc__ = EXAMPLES
