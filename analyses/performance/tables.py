"""Write the tables of README.md from the JSON files of this folder.

python analyses/performance/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FEWEST_ROUNDS = 5
"""Minimum number of rounds of the attention benchmark for a median."""
LABELS = {
    "plain": "plain sdpa forward",
    "probe": "sdpa + lsm-probe",
    "eager": "eager, `[heads, rows, keys, d]`",
    "eager_summed": "eager, `[rows, keys, d]`",
    "transformer_lens": "TransformerLens",
    "nnsight": "nnsight",
}


def main() -> None:
    readme = HERE / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """The page with updated tables: each is between `<!-- NAME -->` and `<!-- end -->`."""
    tables = {"attention": attention(), "shapes": shapes(), "others": others(), "bias_callback": bias_callback()}
    tables["scale"] = scale()
    for name, rows in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        head, *body = rows
        lines = [head, ["---"] * len(head), *body]
        text = before + begin + "".join(f"| {' | '.join(line)} |\n" for line in lines) + end + after
    return text


def attention() -> Iterator[list[str]]:
    yield ["threads", "tokens", "method", "seconds a pass", "times the plain pass (range)", "rounds", "peak memory, MB"]
    for name in ("attention_overhead", "attention_overhead_one_thread"):
        found = read(name)
        if found is None:
            continue
        for row in found["measured"]:
            yield [str(found["environment"]["threads"]), str(row["tokens"]), LABELS[row["method"]], *measured(row)]


def shapes() -> Iterator[list[str]]:
    yield ["shape", "dtype", "layers", "CPU, threads", "tokens", "method", "seconds a pass",
           "times the plain pass (range)", "rounds", "peak memory, MB"]  # fmt: skip
    for shape in ("vicuna-7b", "llama-3-8b"):
        for dtype in ("float32", "bfloat16"):
            found = read(f"attention_overhead_{shape}_{dtype}")
            if found is None:
                continue
            layers = found["settings"]["model"].split("-")[-2]
            cpu = f"{found['environment']['cpu'].split('(')[0]}, {found['environment']['threads']}"
            for row in found["measured"]:
                yield [shape, dtype, layers, cpu, str(row["tokens"]), LABELS[row["method"]], *measured(row)]


def others() -> Iterator[list[str]]:
    yield ["work", "compared with", "times as long", "peak memory above the model, MiB"]
    importance = read("importance")
    for way, ratio in importance["times_forward_and_backward"].items():
        peak = f"{importance['peak_mib_above_model'][way]:.0f}"
        yield [way, "forward and backward", f"{ratio:.2f}", peak]
    beyond = read("beyond_attention")
    for probe in ("sensitivity", "knockout"):
        peaks = beyond["peak_mib_above_model"][probe]
        yield [f"{probe}, lsm-probe", "itself", "1.00", f"{peaks['lsm-probe']:.0f}"]
        for way, times in beyond[probe]["times_lsm_probe"].items():
            yield [f"{probe}, {way}", "lsm-probe", f"{times['median']:.2f}", f"{peaks[way]:.0f}"]
    for way, row in read("generation")["methods"].items():
        yield [f"generation, {way}", "one by one", f"{1 / row['ratio']:.2f}", ""]
    for comparison, ways in read("training")["comparisons"].items():
        first = next(iter(ways))
        for way, row in ways.items():
            yield [f"training, {comparison}: {way}", first, f"{1 / row['ratio']:.2f}", ""]
    encoder = read("encoder_context")
    yield ["Whisper on the utterance alone", "on 30 s", f"{1 / encoder['times_as_fast']:.2f}", ""]


def bias_callback() -> Iterator[list[str]]:
    yield ["optimizer steps", "steps between two measurements", "measurements", "% of the time of the steps"]
    for run in read("bias_callback")["whole_runs"]:
        every = str(run["every"]) if run["every"] else "only before the first step"
        yield [f"{run['steps']:,}", every, str(run["probings"]), f"{run['percent_of_the_steps']:.1f}"]


def scale() -> Iterator[list[str]]:
    yield ["work", "samples or lines", "CPU seconds", "peak memory, MiB"]
    for row in read("scale")["measured"]:
        yield [row["what"], f"{row['count']:,}", f"{row['cpu_seconds']:,.1f}", f"{row['peak_mib']:,}"]


def measured(row: dict[str, Any]) -> list[str]:
    """Seconds, ratio with its range, rounds and peak memory of a row of the attention benchmark."""
    if "status" in row:
        return [row["status"], "", "", ""]
    peak = f"{row['peak_mb']:,.0f}" if "peak_mb" in row else row.get("memory_status", "")
    if row["rounds"] < FEWEST_ROUNDS:
        return [f"{row['first_s']:.2f}, one pass", "", "", peak]
    ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    return [f"{row['median_s']:.3f}", ratio, str(row["rounds"]), peak]


def read(name: str) -> Any:
    """A JSON file of this folder, or None if it was not measured."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


if __name__ == "__main__":
    main()
