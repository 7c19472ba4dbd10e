"""Measure the effect of OpenMP threads and their wait policy on run time, beside other busy processes.

`python analyses/performance/threads.py` runs the same work (sensitivity of eight samples, a forward and a backward
pass) in fresh processes: with one and with all threads, with waiting threads that sleep (`passive`) or spin (`active`),
and with 0, 1 or more other busy processes. Rounds alternate between the settings, so that load affects all alike. It
prints medians in seconds, and writes them to a CSV file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

WORK = """
import json, sys, time, torch, lsm_probe
checkpoint = lsm_probe.load("builtin:vanilla_asr", device="cpu", dtype="float32")
samples = lsm_probe.read_manifest("builtin:commands")[:8]
begun = time.perf_counter()
lsm_probe.sensitivity(checkpoint, samples, response="reference")
scored = time.perf_counter()
inputs = torch.randn(8, 96, checkpoint.llm.config.hidden_size)
logits = checkpoint.llm(inputs_embeds=inputs, use_cache=False).logits
logits.logsumexp(-1).mean().backward()
print(json.dumps({"sensitivity": scored - begun, "backward": time.perf_counter() - scored}))
"""
BUSY = "while True: sum(range(10**6))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=int, nargs="*", default=[0, 1, 8], help="busy processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    settings = [(threads, policy) for threads in sorted({1, cores}) for policy in ("passive", "active")]
    rows = []
    for beside in options.beside:
        with busy_processes(beside):
            found: dict[tuple[int, str], list[dict[str, float]]] = {setting: [] for setting in settings}
            for _ in range(options.rounds):
                for setting in settings:
                    found[setting].append(run(*setting))
        for (threads, policy), times in found.items():
            medians = {name: round(statistics.median(each[name] for each in times), 2) for name in times[0]}
            rows.append({"cores": cores, "busy": beside, "threads": threads, "waiting": policy, **medians})
            print(rows[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def run(threads: int, policy: str) -> dict[str, float]:
    """Seconds of the work in a fresh process with these settings."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    ended = subprocess.run([sys.executable, "-c", WORK], env=environment, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return measured


@contextmanager
def busy_processes(number: int):  # type: ignore[no-untyped-def]
    """Keeps so many processes busy inside the block."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
