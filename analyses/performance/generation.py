"""Measure the speed of self-powered generation: one by one, in plain batches, and with `lsm-probe augment`.

python analyses/performance/generation.py                                # CPU, float32, about ten minutes on two cores
python analyses/performance/generation.py --device cuda --dtype bfloat16 --prompts 512 --batch-sizes 64 256
python analyses/performance/generation.py --prompts 8 --rounds 1         # a quick look

The sentences are the built-in commands, each with its assigned task and instruction. All methods answer the same
prompts greedily in one process; every round runs each method once. The ratio is the median over rounds of (time one by
one / time of the method). Answers are compared token by token with those of the one-by-one loop. Writes generation.json
beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig

import lsm_probe
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.commands import command_utterances
from lsm_probe.files import replacing
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt

HERE = Path(__file__).parent
Answers = list[list[int]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--llm", default="builtin:llm", help="folder or name of a text LLM")
    add("--device", default="cpu")
    add("--dtype", default="auto")
    add("--prompts", type=int, default=48)
    add("--batch-sizes", type=int, nargs="+", default=[16, 48])
    add("--rounds", type=int, default=3)
    add("--seed", type=int, default=0)
    return parser.parse_args()


def make_prompts(checkpoint: Checkpoint, recipe: Recipe, count: int, seed: int) -> list[tuple[str, Prompt]]:
    """(task, prompt) of the first `count` sentences that the LLM answers."""
    prompts = []
    for utterance in command_utterances(max(240, 2 * count), seed):
        assignment = recipe.pool.assign(seed, utterance.id)
        if assignment.answer == "llm":
            prompts.append((assignment.task, checkpoint.encode(assignment.instruction, utterance.text)))
    return prompts[:count]


def one_by_one(checkpoint: Checkpoint, prompts: list[Prompt], limit: int) -> Answers:
    """Generate for one prompt at a time."""
    return [plain_batch(checkpoint, [prompt], limit)[0] for prompt in prompts]


def plain_batch(checkpoint: Checkpoint, prompts: list[Prompt], limit: int) -> Answers:
    """A left-padded batch through transformers' generate."""
    eos, device = checkpoint.eos_token_ids, checkpoint.model.device
    longest = max(map(len, prompts))
    ids = [[eos[0]] * (longest - len(prompt)) + prompt.input_ids for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    made = checkpoint.llm.generate(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=limit, eos_token_id=eos, pad_token_id=eos[0]
        ),
    )
    answers = made[:, longest:].tolist()
    return [answer[: next((i + 1 for i, t in enumerate(answer) if t in eos), limit)] for answer in answers]


def in_batches(batch: Callable[[list[Prompt]], Answers], prompts: list[tuple[str, Prompt]], size: int) -> Answers:
    """Batches sorted by task and length; answers in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i][0], len(prompts[i][1]), i))
    answers: Answers = [[] for _ in prompts]
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        for i, answer in zip(chosen, batch([prompts[i][1] for i in chosen]), strict=True):
            answers[i] = answer
    return answers


def methods(checkpoint: Checkpoint, prompts: list[tuple[str, Prompt]], sizes: list[int], limit: int) -> dict[str, Any]:
    """Name to a function that answers all prompts."""
    ours = lambda batch: checkpoint.generate(checkpoint.embed(batch), max_new_tokens=limit)  # noqa: E731
    plain = lambda batch: plain_batch(checkpoint, batch, limit)  # noqa: E731
    table: dict[str, Any] = {"one by one": lambda: one_by_one(checkpoint, [prompt for _, prompt in prompts], limit)}
    for size in sizes:
        table[f"batches of {size}"] = lambda size=size: in_batches(plain, prompts, size)
        table[f"lsm-probe, batches of {size}"] = lambda size=size: in_batches(ours, prompts, size)
    return table


def main() -> None:
    options = arguments()
    checkpoint = lsm_probe.load(options.llm, device=options.device, dtype=options.dtype)
    recipe = Recipe()
    prompts = make_prompts(checkpoint, recipe, options.prompts, options.seed)
    table = methods(checkpoint, prompts, options.batch_sizes, recipe.max_new_tokens)
    checkpoint.generate(checkpoint.embed([prompts[0][1]]), max_new_tokens=4)  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in table}
    answers: dict[str, Answers] = {}
    load = os.getloadavg()[0]
    for _ in range(options.rounds):
        for name, run in table.items():
            began = time.perf_counter()
            answers[name] = run()
            seconds[name].append(time.perf_counter() - began)
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    naive, tokens = answers["one by one"], sum(map(len, answers["one by one"]))
    rows = {
        name: {
            "seconds": [round(s, 2) for s in seconds[name]],
            "tokens_per_second": round(tokens / median(seconds[name]), 1),
            "ratio": round(median(n / s for n, s in zip(seconds["one by one"], seconds[name], strict=True)), 2),
            "equal_answers": sum(a == b for a, b in zip(answers[name], naive, strict=True)),
        }
        for name in table
    }
    report = {
        "date": date.today().isoformat(),
        "llm": options.llm,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("lsm-probe", "torch", "transformers")},
        "load_average_at_start": round(load, 2),
        "prompts": len(prompts),
        "mean_prompt_tokens": round(sum(len(prompt) for _, prompt in prompts) / len(prompts), 1),
        "answer_tokens": tokens,
        "methods": rows,
    }
    with replacing(HERE / "generation.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report)


def show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['prompts']} prompts, {report['answer_tokens']} answer tokens, {report['dtype']}")
    for column in ("method", "tokens/s", "times as fast", "equal answers"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in report["methods"].items():
        equal = f"{row['equal_answers']} of {report['prompts']}"
        table.add_row(name, f"{row['tokens_per_second']:.0f}", f"{row['ratio']:.2f}", equal)
    Console().print(table)


if __name__ == "__main__":
    main()
