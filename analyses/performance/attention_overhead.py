"""Measure time and memory of the attention probe and of other ways to obtain the same numbers.

python analyses/performance/attention_overhead.py                      # everything, CPU, float32
python analyses/performance/attention_overhead.py --device cuda --dtype bfloat16
python analyses/performance/attention_overhead.py --lengths 128 --curve --repeats 3     # a quick look
python analyses/performance/attention_overhead.py --shape vicuna-7b --lengths 192 576  # two layers of a 7B, random

All methods get the same tokens. In one process, every round times each method once, so that a slower machine affects
all of them. Memory is measured in a fresh process for each method and length. See README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from methods import METHODS, ROWS, SEGMENTS, Inputs, Outcome, load, make_inputs
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from shapes import SHAPES, save_shape

from lsm_probe.assets import language_model
from lsm_probe.files import replacing

HERE = Path(__file__).parent
MB = 1e6
LINUX = sys.platform == "linux"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # eager attention rounds alpha to bf16
CURVE_METHODS = ("plain", "probe", "eager")
PACKAGES = ("lsm-probe", "torch", "transformers", "transformer-lens", "nnsight", "numpy")

Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=None, help="folder of a text LLM; default the embedded SmolLM2-135M-Instruct")
    add("--shape", choices=SHAPES, help="instead of a model, random weights of these dimensions, without a growth plot")
    add("--layers", type=int, default=2, help="decoder layers of a shape; its vocabulary is small, so that they count")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what to measure; plain always")
    add("--device", default="cpu")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--lengths", type=int, nargs="*", default=[128, 512, 1024], help=f"prompt + {ROWS} rows, for all methods")
    add("--curve", type=int, nargs="*", default=[128, 256, 512, 1024, 2048, 4096], help="for the growth plot")
    add("--repeats", type=int, default=7, help="timed rounds, after one that is not")
    add("--curve-repeats", type=int, default=5, help="timed rounds at lengths that only the growth plot has")
    add("--method-seconds", type=float, default=25, help="a method whose first pass took longer is not timed further")
    add("--pass-seconds", type=float, default=30, help="a pass expected to take longer is not run")
    add("--cpu-seconds", action="store_true", help="for a busy machine: count CPU seconds; with OMP_NUM_THREADS=1 only")
    add("--memory-budget", type=float, default=None, help="GB a method may need; default 60 %% of the device's memory")
    add("--out", type=Path, default=None, help="default attention_overhead.json, with shape and dtype in its name")
    add("--figure", type=Path, default=HERE.parents[1] / "figures" / "attention_overhead.png")
    add("--memory-of", choices=METHODS, help=argparse.SUPPRESS)  # used by this script for its own child processes
    options = parser.parse_args()
    if min([*options.lengths, *options.curve, 4 * ROWS]) <= ROWS:
        parser.error(f"a length counts prompt and {ROWS} response tokens: it must be above {ROWS}")
    if options.cpu_seconds and (torch.get_num_threads() > 1 or options.device != "cpu"):
        parser.error("--cpu-seconds measures one thread of the CPU: set OMP_NUM_THREADS=1")
    options.methods = [name for name in METHODS if name == "plain" or name in options.methods]
    if options.out is None:
        of_shape = f"_{options.shape}_{options.dtype}" if options.shape else ""
        options.out = HERE / f"attention_overhead{of_shape}.json"
    options.model = options.model or Path(language_model())
    if options.shape:
        options.curve = []
    if options.memory_budget is None:
        options.memory_budget = 0.6e-9 * device_memory(options.device)
    return options


def device_memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class Runner:
    """Prepares each method on its own copy of the model, on first use, and runs it within its budgets."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.dtype = getattr(torch, options.dtype)
        self.clock = time.process_time if options.cpu_seconds else time.perf_counter
        self.prepared: dict[str, Any] = {}
        self.config: Any = None
        self.stopped: dict[str, str] = {}
        """Methods that failed; they would fail at greater lengths too."""
        self.seconds: dict[str, tuple[int, float]] = {}
        """Length last run and least time of a pass there (others may use the machine), to foresee the next."""

    def prepare(self, name: str) -> Any:
        if name not in self.prepared:
            model = load(self.options.model, self.dtype, self.options.device)
            self.config = model.config
            self.prepared[name] = METHODS[name].prepare(model, self.options.model)
        return self.prepared[name]

    def obstacle(self, name: str, tokens: int) -> str | None:
        """The reason why a method cannot be run at this length, if any."""
        method = METHODS[name]
        if not method.installed:
            return "not installed"
        if name in self.stopped:
            return self.stopped[name]
        self.prepare(name)
        need = method.bytes_needed(self.config, tokens, self.dtype.itemsize) / 1e9
        if need > self.options.memory_budget:
            return f"over the memory budget (needs {need:.1f} GB of {self.options.memory_budget:.1f})"
        if name in self.seconds:
            before, took = self.seconds[name]
            expected = took * tokens / before
            if expected > self.options.pass_seconds:
                return f"over the time budget (at least {expected:.0f} s a pass of {self.options.pass_seconds:.0f})"
        return None

    def run(self, name: str, inputs: Inputs) -> tuple[Outcome | None, float]:
        """Run one pass and return its seconds; if memory runs out, None, with the reason in `stopped`."""
        prepared = self.prepare(name)
        gc.collect()
        synchronize(self.options.device)
        start = self.clock()
        try:
            outcome = METHODS[name].run(prepared, inputs)
        except (RuntimeError, MemoryError) as error:
            if not should_reduce_batch_size(error):
                raise
            self.stopped[name] = f"out of memory at {inputs.ids.shape[1]} tokens"
            return None, 0.0
        synchronize(self.options.device)
        took = self.clock() - start
        tokens = inputs.ids.shape[1]
        before, least = self.seconds.get(name, (0, 0.0))
        self.seconds[name] = (tokens, min(least, took) if before == tokens else took)
        return outcome, took


def measure(
    runner: Runner, names: Sequence[str], tokens: int, repeats: int, reference: torch.Tensor | None, say: Say
) -> list[Row]:
    """Time the methods alternately at one length; one row per method.

    Args:
        reference: sums `[layers, 4]` to compare with; if None, those of the first direct computation.
    """
    options = runner.options
    inputs = make_inputs(options.model, tokens, options.device)
    rows: dict[str, Row] = {name: {"tokens": tokens, "method": name} for name in names}
    logits: dict[str, torch.Tensor] = {}
    sums: dict[str, torch.Tensor] = {}
    active: list[str] = []
    for name in names:
        say(f"{tokens} tokens: {escape(METHODS[name].label)}")
        reason = runner.obstacle(name, tokens)
        outcome, took = (None, 0.0) if reason else runner.run(name, inputs)
        if outcome is None:
            rows[name]["status"] = reason or runner.stopped[name]
            continue
        active.append(name)
        rows[name]["first_s"] = took
        logits[name] = outcome.logits
        if outcome.sums is not None:
            sums[name] = outcome.sums
    if "probe" in logits and not torch.equal(logits["plain"], logits["probe"]):
        raise SystemExit(f"{tokens} tokens: the probe changed the model's logits")
    logits.clear()
    against = reference if reference is not None else next((s for n, s in sums.items() if n != "probe"), None)
    for name, found in sums.items():
        if against is not None:
            difference = (found.double() / against.double() - 1).abs().max().item()
            rows[name]["difference"] = difference
            if not difference <= TOLERANCE[runner.dtype]:
                raise SystemExit(f"{tokens} tokens: {METHODS[name].label} is off by {difference:.1e} relative")
    times: dict[str, list[float]] = {name: [] for name in active}
    ratios: dict[str, list[float]] = {name: [] for name in active}
    slow = {n for n in active if rows[n]["first_s"] > options.method_seconds} - {"plain", "probe"}
    for turn in range(repeats):
        say(f"{tokens} tokens: round {turn + 1} of {repeats}")
        for name in active:
            if name in slow:
                continue
            outcome, took = runner.run(name, inputs)
            if outcome is not None:
                times[name].append(took)
                ratios[name].append(took / times["plain"][-1])
    for name in active:
        if name in slow or not times[name]:  # one pass has no median
            rows[name]["rounds"] = 0
            continue
        seconds, ratio = times[name], ratios[name]
        rows[name] |= {
            "rounds": len(seconds),
            "median_s": median(seconds),
            "min_s": min(seconds),
            "ratio": median(ratio),
            "ratio_min": min(ratio),
            "ratio_max": max(ratio),
            "seconds": seconds,
        }
    return list(rows.values())


def float64_reference(options: argparse.Namespace, tokens: int) -> torch.Tensor:
    """The definition, computed in float64: `[layers, 4]`."""
    model = load(options.model, torch.float64, options.device)
    method = METHODS["eager_summed"]
    sums = method.run(method.prepare(model, options.model), make_inputs(options.model, tokens, options.device)).sums
    assert sums is not None
    return sums


# Memory is measured in a fresh process for each method and length.


def report_memory(options: argparse.Namespace) -> None:
    """In the child: runs one method once, prints peak and loaded memory in bytes as JSON."""
    tokens = options.lengths[0]
    model = load(options.model, getattr(torch, options.dtype), options.device)
    prepared = METHODS[options.memory_of].prepare(model, options.model)
    inputs = make_inputs(options.model, tokens, options.device)
    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
        METHODS[options.memory_of].run(prepared, inputs)
        peak = torch.cuda.max_memory_allocated()
    else:
        # Loading has a peak of its own (the file and its converted copy), which can exceed that of a short pass. If the
        # system allows it (Linux), the peak is reset here.
        if LINUX:
            with suppress(AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        loaded = psutil.Process().memory_info().rss
        METHODS[options.memory_of].run(prepared, inputs)
        peak = resident_peak()
    print(json.dumps({"peak": peak, "loaded": loaded}))


def resident_peak() -> int:
    """Peak memory of this process in bytes."""
    if LINUX:
        # Not ru_maxrss, because a child process inherits the peak of its parent through fork and exec.
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_of(options: argparse.Namespace, row: Row) -> dict[str, Any]:
    """Runs a row's method in a process of its own: `peak` and `loaded` in bytes, or `memory_status`."""
    command = [sys.executable, __file__, "--memory-of", row["method"], "--lengths", str(row["tokens"])]
    command += ["--model", str(options.model), "--device", options.device, "--dtype", options.dtype]
    # Two processes run at a time. One thread each also limits the number of buffers on machines with many cores.
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    if not done.returncode:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0 or "memory" in done.stderr.lower():
        return {"memory_status": "out of memory alone in a process"}
    raise SystemExit(done.stderr)


def add_memory(options: argparse.Namespace, rows: list[Row]) -> None:
    """Add to each measured row the peak of a separate process, and its memory above the model."""
    measured = [row for row in rows if "status" not in row]
    with ThreadPoolExecutor(1 if options.device.startswith("cuda") else 2) as pool:
        found = list(pool.map(lambda row: memory_of(options, row), measured))
    plain_peak = {r["tokens"]: f["peak"] for r, f in zip(measured, found, strict=True) if r["method"] == "plain"}
    for row, memory in zip(measured, found, strict=True):
        if "peak" not in memory:
            row |= memory
            continue
        row["peak_mb"] = memory["peak"] / MB
        row["above_model_mb"] = (memory["peak"] - memory["loaded"]) / MB
        row["peak_ratio"] = memory["peak"] / plain_peak[row["tokens"]]


# Output.

Say = Callable[[str], None]


def table(rows: Sequence[Row], title: str) -> Table:
    shown = Table(title=title)
    shown.add_column("tokens", justify="right")
    shown.add_column("method", overflow="fold")
    for name in ("median s", "min s", "x plain (min..max)", "rounds", "peak MB", "x plain", "above model MB", "off by"):
        shown.add_column(name, justify="right", overflow="fold")
    for row in rows:
        start = [str(row["tokens"]), escape(METHODS[row["method"]].label)]
        if "status" in row:
            shown.add_row(*start, row["status"])
            continue
        timed = ["", f"{row['first_s']:.3f}", "one pass"]
        if row["rounds"]:
            ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}..{row['ratio_max']:.2f})"
            timed = [f"{row['median_s']:.3f}", f"{row['min_s']:.3f}", ratio]
        shown.add_row(
            *start,
            *timed,
            str(row["rounds"]),
            f"{row['peak_mb']:.0f}" if "peak_mb" in row else row.get("memory_status", ""),
            f"{row['peak_ratio']:.2f}" if "peak_ratio" in row else "",
            f"{row['above_model_mb']:.0f}" if "above_model_mb" in row else "",
            f"{row['difference']:.0e}" if "difference" in row else "",
        )
    return shown


def draw(rows: Sequence[Row], path: Path, subtitle: str) -> None:
    """Draw time by length for each method and the probe's ratio to the plain forward pass; also write a CSV file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    frame = pd.DataFrame([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    with replacing(path.with_suffix(".csv")) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.5g")
    if "median_s" not in frame:
        return
    timed = frame[frame["median_s"].notna()]
    with sns.axes_style("ticks"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
        palette = dict(zip(METHODS, sns.color_palette("colorblind", len(METHODS)), strict=True))
        for (name, method), marker in zip(METHODS.items(), "osD^vP", strict=True):
            one = timed[timed["method"] == name].sort_values("tokens")
            if not one.empty:
                left.plot(one["tokens"], one["median_s"], marker=marker, color=palette[name], label=method.label)
        left.set(xscale="log", yscale="log", ylabel="seconds a pass (median)")
        left.legend(frameon=False, fontsize=8)
        one = timed[timed["method"] == "probe"].sort_values("tokens")
        right.errorbar(
            one["tokens"],
            one["ratio"],
            yerr=[one["ratio"] - one["ratio_min"], one["ratio_max"] - one["ratio"]],
            marker="s",
            capsize=3,
            color=palette["probe"],
        )
        right.axhline(1, color="0.6", linewidth=0.8)
        right.set(xscale="log", ylabel="time with lsm-probe / plain forward pass", ylim=(0.95, None))
        right.set_title("median of paired rounds, least to greatest", fontsize=9)
        for ax in (left, right):
            ticks = sorted(set(timed["tokens"]))
            ax.set_xticks(ticks, [str(t) for t in ticks])
            ax.minorticks_off()
            ax.set_xlabel(f"prompt and {ROWS} response tokens")
            sns.despine(ax=ax)
        figure.suptitle(subtitle, fontsize=9)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=200)
        plt.close(figure)


def environment(options: argparse.Namespace) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


@torch.no_grad()
def main() -> None:
    options = arguments()
    warnings.filterwarnings("ignore")
    if options.memory_of:
        report_memory(options)
        return
    if not options.shape:
        benchmark(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        shape = Path(folder) / f"{options.shape}-{options.layers}-layers"
        save_shape(options.shape, options.layers, 1024, options.model, shape)
        options.model = shape
        benchmark(options)


def benchmark(options: argparse.Namespace) -> None:
    console, progress = Console(), Console(stderr=True)
    console = console if console.is_terminal else Console(width=150)
    machine = environment(options)
    machine["load_average_at_start"] = [round(x, 2) for x in os.getloadavg()]
    runner = Runner(options)
    lengths, others = sorted(options.lengths), sorted(set(options.curve) - set(options.lengths))
    with progress.status("") as status:
        reference = None
        if lengths and runner.dtype == torch.float32:
            status.update("reference in float64")
            reference = float64_reference(options, lengths[0])
        rows: list[Row] = []
        for tokens in lengths:
            rows += measure(runner, options.methods, tokens, options.repeats, reference, status.update)
            reference = None
        status.update("memory, a process for each method and length")
        add_memory(options, rows)
        for name in set(METHODS) - set(CURVE_METHODS):
            runner.prepared.pop(name, None)
        growth: list[Row] = []
        for tokens in others:
            growth += measure(
                runner,
                [n for n in CURVE_METHODS if n in options.methods],
                tokens,
                options.curve_repeats,
                None,
                status.update,
            )
    machine["load_average_at_end"] = [round(x, 2) for x in os.getloadavg()]
    what = f"{options.model.name}, {options.dtype}, {machine['gpu'] or machine['cpu']}, {machine['threads']} threads"
    if rows:
        console.print(table(rows, what))
    if growth:
        console.print(table(growth, "growth"))
    settings = {"model": options.model.name, "device": options.device, "dtype": options.dtype, "rows": ROWS}
    settings |= {"segments": [s.name.lower() for s in SEGMENTS], "repeats": options.repeats}
    settings |= {"clock": "CPU seconds" if options.cpu_seconds else "seconds"}
    settings |= {"method_seconds": options.method_seconds, "pass_seconds": options.pass_seconds}
    settings |= {"memory_budget_gb": round(options.memory_budget, 1)}
    with replacing(options.out) as temporary:
        content = {"environment": machine, "settings": settings, "measured": rows, "growth": growth}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    curve = [row for row in rows + growth if row["tokens"] in options.curve]
    if curve:
        draw(curve, options.figure, what)


if __name__ == "__main__":
    main()
