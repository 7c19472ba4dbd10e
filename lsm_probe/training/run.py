"""A training run: all stages, from a config to a checkpoint that the probes can load."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from lsm_probe.checksums import is_complete
from lsm_probe.data.problems import OnError
from lsm_probe.distributed import init_distributed
from lsm_probe.errors import InputError
from lsm_probe.folders import work_folder
from lsm_probe.hardware import warn_if_emulated
from lsm_probe.progress import OnProgress, notebook_progress
from lsm_probe.training.config import TrainConfig
from lsm_probe.training.stage import StageRun


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    on_error: OnError = "fail",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Trains as `config` defines; under `torchrun` every process must call this function.

    `out/model` is the trained checkpoint. An interrupted run resumes from `checkpoint-*`. `history.json` has the
    losses, `report.json` the return value, `data.json` a hash of the samples, `tensorboard/` the log, and `bias.*` the
    probings. With several stages, each has its own folder.

    Args:
        config: see [`read_config`].
        out: the folder; empty, unless `resume`.
        resume: continue in a folder that was started with the same config. On CPU the weights are bitwise the same as
            without the interruption.
        on_error: for samples that cannot be used: "fail", or "skip" and count them. Without `cache_features` only the
            headers of sound files are read beforehand; damage after the header stops the run when the file is read.
        on_progress: called with (name, done, total, note); by default only notebooks show bars.

    Returns:
        For each stage: steps, samples, trained and all parameters, seconds, tokens per second, the last evaluation.

    Raises:
        InputError: config, data, model or folder cannot be used.
        WorkFailed: loss or gradient is not finite, or memory is too small for one sample.
        Terminated: the process got SIGTERM; everything is saved.
    """
    out = Path(out)
    state = init_distributed(cpu=config.machine.device == "cpu")
    if config.precision == "bf16" and state.is_main_process:
        warn_if_emulated(torch.bfloat16, state.device, "precision=bf16")
    config = config.with_precision_for(state.device)
    stages = config.resolved_stages()
    if not all(stage.train for stage in stages):
        raise InputError("the config names no training data: add train=MANIFEST.jsonl")
    if state.is_main_process and state.num_processes != config.machine.devices:
        warnings.warn(
            f"the config is meant for machine.devices={config.machine.devices}, this run has {state.num_processes}: "
            "see the launch line of --dry-run",
            stacklevel=2,
        )
    report: dict[str, Any] = {"model": str(out / "model"), "stages": []}
    own_folder = work_folder(out, config.deciding(), resume=resume) if state.is_main_process else nullcontext()
    with own_folder, notebook_progress(on_progress) as show:
        state.wait_for_everyone()  # the other processes start when the main process has the folder
        start: Path | None = None
        for number, stage in enumerate(stages, start=1):
            folder = out if len(stages) == 1 else out / f"{number}-{stage.name}"
            target = out / "model" if number == len(stages) else folder / "model"
            if not is_complete(target):
                StageRun(config, stage, start, folder, target, on_error, show).train()
            report["stages"].append(json.loads((folder / "report.json").read_text(encoding="utf-8")))
            start = target
    return report
