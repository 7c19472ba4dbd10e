"""Measure the CPU seconds of `BiasCallback` in a training run of the miniature model.

The run is short. Its seconds per step and per probing give the share of the callback in whole runs of several
lengths under the default schedule (`probe_every=auto`). CPU seconds, because other jobs may use the cores; steps and
probings of the same run, because two runs differ by more than the callback takes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from measuring import machine

import lsm_probe
from lsm_probe.hardware import computes_natively
from lsm_probe.training.bias_callback import SHARE, BiasCallback
from lsm_probe.training.probe_schedule import MEASURED_STEPS, StepTimer, steps_between

OUT = Path(__file__).with_suffix(".json")
RUNS = (40, 80, 160, 240, 320, 1000, 5000)
"""Numbers of optimizer steps of whole runs; `mini/commands` has 240, `mini/vanilla_asr` 320."""
SECONDS: dict[str, list[float]] = {"setup": [], "step": [], "probing": []}


def counted(method: Any, kind: str) -> Any:
    """The method, whose CPU seconds are added to SECONDS."""

    def run(*args: Any, **kwargs: Any) -> Any:
        begun = process_time()
        found = method(*args, **kwargs)
        SECONDS[kind].append(process_time() - begun)
        return found

    return run


def watch() -> None:
    """Count the seconds of steps, probings, and the preparation of the probings."""
    begun = 0.0
    step_begin, step_end = BiasCallback.on_step_begin, BiasCallback.on_step_end

    def begin(*args: Any, **kwargs: Any) -> None:
        nonlocal begun
        step_begin(*args, **kwargs)
        begun = process_time()

    def end(*args: Any, **kwargs: Any) -> None:
        SECONDS["step"].append(process_time() - begun)
        step_end(*args, **kwargs)

    patched: Any = BiasCallback
    patched.on_step_begin, patched.on_step_end = begin, end
    patched._probe = counted(patched._probe, "probing")
    patched._begin_history = counted(patched._begin_history, "setup")


def whole_run(steps: int, setup: float, each_step: list[float], each_probing: list[float]) -> dict[str, Any]:
    """Number of probings under the default schedule, and their share of the time of the steps.

    The schedule knows the first probing and the first steps. The share uses the medians of all.
    """
    expected = StepTimer(each_step[:MEASURED_STEPS]).step_seconds
    assert expected is not None
    every = steps_between(
        share=SHARE,
        total_steps=steps,
        step_seconds=expected,
        probe_seconds=each_probing[0],
        setup_seconds=setup,
    )
    probings = 1 + (-(-steps // every) if every else 0)
    percent = 100 * (setup + probings * median(each_probing)) / (steps * median(each_step[1:]))
    return {"steps": steps, "every": every, "probings": probings, "percent_of_the_steps": round(percent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mini/commands")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    changed = ["train=builtin:commands", "eval=[]", f"max_steps={args.steps}", f"probe_every={args.steps}"]
    watch()
    with tempfile.TemporaryDirectory() as folder:
        lsm_probe.train(lsm_probe.read_config(args.preset, changed), Path(folder) / "run")
    found = {
        "preset": args.preset,
        "unit": "CPU seconds",
        "bfloat16_instructions": computes_natively(torch.bfloat16, torch.device("cpu")),
        **{f"each_{kind}": [round(each, 2) for each in seconds] for kind, seconds in SECONDS.items()},
        "step": round(median(SECONDS["step"][1:]), 2),
        "probing": round(median(SECONDS["probing"]), 2),
        "whole_runs": [whole_run(steps, sum(SECONDS["setup"]), SECONDS["step"], SECONDS["probing"]) for steps in RUNS],
        "machine": machine("cpu"),
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
