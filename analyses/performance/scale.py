"""Measure how time and memory grow with the number of samples, utterances and manifest lines.

`OMP_NUM_THREADS=1 python analyses/performance/scale.py` takes about an hour on one thread and writes `scale.json`:

- `lsm-probe attention` on 100, 400 and 1,200 samples of the paper's size: 30 s of speech (88 speech tokens), an
  instruction, and a given response of about 60 tokens. Model: `builtin:untrained` in float32.
- `lsm-probe report` and `lsm-probe check` on a result of 10,000 samples, made by repeating the smallest of those runs.
- `lsm_probe.read_manifest` of 1,000,000 lines.

Every command runs in its own process. CPU seconds and peak memory are those that the system reports for it. This script
uses little memory, because a process inherits the peak of its parent. With `--work FOLDER`, the same command continues
an interrupted run: it skips the measurements that were finished.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPEECH_SECONDS = 30
INSTRUCTION = (
    "Listen to the recording first. Then write a short summary of it for a colleague who has not heard it, in plain "
    "English."
)
RESPONSE = (
    "The speaker talks about several everyday matters, one after the other. Each remark is short and clear. A "
    "colleague who has not heard the recording should know that nothing urgent is asked for, that the tone is "
    "friendly, and that all requests concern the house, the weather, the music or the time of the day."
)

JOIN = """
import sys, numpy as np, soundfile as sf
from lsm_probe import read_manifest
from lsm_probe.data.audio import read_audio
waves = [read_audio(sample) for name in ("probe", "commands") for sample in read_manifest(f"builtin:{name}")]
joined = np.concatenate(waves)
sf.write(sys.argv[1], joined, 16000)
print(len(joined) / 16000)
"""
REPEAT = """
import sys, numpy as np
from dataclasses import replace
from lsm_probe.probes.attention.result import AttentionResult
source, folder, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
result = AttentionResult.load(source)
chosen = np.arange(wanted) % len(result.samples)
noise = np.random.default_rng(0).uniform(0.8, 1.25, (wanted, 1, 5))
samples = [result.samples[i] | {"id": f"{n}"} for n, i in enumerate(chosen)]
norms, heads = result.norms[chosen] * noise, result.head_norms[chosen] * noise[:, None]
data = replace(result.data, n_samples=wanted)
replace(result, samples=samples, clusters=np.arange(wanted), norms=norms, head_norms=heads, data=data,
        tokens=result.tokens[chosen], rows=result.rows[chosen]).save(folder)
"""
READ = "import sys, lsm_probe; print(len(lsm_probe.read_manifest(sys.argv[1])))"
"""Code for child processes, so that this process needs neither NumPy nor PyTorch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 400, 1200])
    parser.add_argument("--stored", type=int, default=10_000, help="samples of the result that is reported and checked")
    parser.add_argument("--lines", type=int, default=1_000_000, help="lines of the manifest")
    parser.add_argument("--work", type=Path, help="folder that keeps data and finished measurements")
    parser.add_argument("--out", type=Path, default=HERE / "scale.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.work or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        rows = [measure_attention(folder, count) for count in sorted(options.samples)]
        rows += measure_reading(folder, folder / f"attention-{min(options.samples)}", options.stored)
        rows.append(measure_manifest(folder, options.lines))
    content = {"machine": machine(), "measured": rows}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def measure_attention(folder: Path, count: int) -> dict[str, Any]:
    """Run the attention probe on this number of samples, each with different 30 s of one long recording."""
    recording = folder / "speech.wav"
    if not recording.exists():
        (folder / "seconds").write_text(run_python(JOIN, recording).stdout)
    seconds = float((folder / "seconds").read_text())
    draw = random.Random(0)
    manifest = folder / f"samples-{count}.jsonl"
    sample = {"instruction": INSTRUCTION, "audio": recording.name, "target": RESPONSE, "duration": SPEECH_SECONDS}
    starts = [round(draw.uniform(0, seconds - SPEECH_SECONDS), 3) for _ in range(count)]
    write_lines(manifest, ({"id": f"{i}", **sample, "start": start} for i, start in enumerate(starts)))
    out = folder / f"attention-{count}"
    command = ["attention", "--ckpt", "builtin:untrained", "--dtype", "float32", "--data", manifest]
    row = measured(folder, "attention", count, lsm_probe(*command, "--response", "reference", "--out", out))
    stored = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return row | {"tokens_a_sample": {"segments": stored["segments"], "excluded": stored["excluded"]}}


def measure_reading(folder: Path, result: Path, count: int) -> list[dict[str, Any]]:
    """Run the commands that read a result, on a result with this number of samples."""
    large, baseline = folder / "large", folder / "baseline"
    run_python(REPEAT, result, large, count)
    shutil.copytree(large, baseline, dirs_exist_ok=True)
    commands = {
        "report": ("report", large, "--out", folder / "report.html"),
        "check": ("check", "--baseline", baseline, "--current", large),
        "check --paired": ("check", "--baseline", baseline, "--current", large, "--paired"),
    }
    return [measured(folder, name, count, lsm_probe(*command)) for name, command in commands.items()]


def measure_manifest(folder: Path, lines: int) -> dict[str, Any]:
    manifest = folder / "large.jsonl"
    sample = {
        "instruction": INSTRUCTION,
        "text": "Would you please turn down the dining room radio?",
        "task": "summary",
    }
    write_lines(manifest, ({"id": f"{i}", **sample} for i in range(lines)))
    return measured(folder, "read_manifest", lines, [sys.executable, "-c", READ, str(manifest)])


def measured(folder: Path, what: str, count: int, command: list[str]) -> dict[str, Any]:
    """CPU seconds, seconds and peak memory of a command, run unless the folder has them from an interrupted run."""
    kept = folder / f"{what}-{count}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    begun = os.times()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    row = {
        "what": what,
        "count": count,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "seconds": round(os.times().elapsed - begun.elapsed, 1),
        "peak_mib": round(usage.ru_maxrss / 2**10),
    }
    print(row, flush=True)
    kept.write_text(json.dumps(row), encoding="utf-8")
    return row


def lsm_probe(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lsm_probe", *map(str, arguments)]


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def write_lines(path: Path, rows: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("lsm-probe", "torch", "transformers")}
        | {"python": platform.python_version()},
    }


if __name__ == "__main__":
    main()
