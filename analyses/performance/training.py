"""Measure the speed of training with cached features, with our collation, and by precision.

lsm-probe data commands --count 240 --out commands                             # the data, once
OMP_NUM_THREADS=1 python analyses/performance/training.py --data commands      # about ten minutes on one thread
python analyses/performance/training.py --data commands --rounds 1 --samples 8 --batch-size 8 --pass-size 2

The miniature of `lsm-probe train mini/commands`: SmolLM2-135M-Instruct, Whisper tiny.en, four tasks, trained except for
the encoder. In one process, every round runs each variant once, on the same samples and weights; the samples change
between rounds. A ratio is the median over rounds of (time of the first variant / time of this variant). With one
thread, CPU seconds are used, because other processes affect them less than wall time. If losses differ by more than
1e-4 in float32, the script stops without a table. Writes training.json beside this file.

speech      an epoch with speech encoded in every step (padded to 30 s, or trimmed), and with cached states
collation   from cached states. Stock: whole sequences padded right, logits of all positions and random passes, like a
            padding collator with transformers' Trainer. Ours: head on responses only, passes of similar lengths, both
precision   a step with its optimizer: float32, bfloat16 autocast (ours), bfloat16 weights with float32 copies
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lsm_probe import assets
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample
from lsm_probe.files import replacing
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.building import build_lsm
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.processing_lsm import pad
from lsm_probe.training.config import Stage
from lsm_probe.training.dataset import IGNORED, TrainingSet, collate
from lsm_probe.training.order import LengthGrouped
from lsm_probe.training.parameters import prepare_model
from lsm_probe.training.states import SpeechStates

HERE = Path(__file__).parent
TASKS = ("transcription", "place", "device", "capitals")
TOLERANCE = 1e-4
Batch = dict[str, Tensor]
Collate = Callable[[list[dict[str, Any]]], Batch]
Way = Callable[[int], tuple[float, int]]
"""A function that runs a round and returns its loss per response token and its tokens without padding."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder that `lsm-probe data commands` made")
    add("--encoder", help="folder of a Whisper; the built-in one if not given")
    add("--llm", help="folder of an LLM; the built-in one if not given")
    add("--samples", type=int, default=40, help="of an epoch in the first comparison")
    add("--batch-size", type=int, default=32, help="samples of an optimizer step")
    add("--pass-size", type=int, default=8, help="samples of a forward pass")
    add("--rounds", type=int, default=2)
    add("--note", default="", help="kept in the JSON: what else the machine did")
    return parser.parse_args()


def read_samples(folder: Path, count: int) -> list[Sample]:
    """`count` samples of the training split: its sentences in order, each with one task."""
    manifests = [read_manifest(folder / f"train.{task}.jsonl") for task in TASKS]
    rows = min(len(manifests[0]), count)
    return [manifests[i % len(TASKS)][i % rows] for i in range(count)]


def build(options: argparse.Namespace, context: str) -> Checkpoint:
    """A new model with the same weights for each context."""
    encoder, llm = options.encoder or assets.speech_encoder(), options.llm or assets.language_model()
    return build_lsm(encoder, llm, projector=LsmProjectorConfig(connector="frame_stack"), encoder_context=context)


def collate_whole(items: list[dict[str, Any]], *, pad_id: int) -> Batch:
    """Pad whole sequences right and compute all logits, like a padding collator with the Trainer."""
    rows = [item["prompt"] + item["response"] for item in items]
    labels = [[IGNORED] * len(item["prompt"]) + item["response"] for item in items]
    speech = {key: tensor for key, tensor in collate(items, pad_id=pad_id).items() if key.startswith("speech")}
    return speech | {
        "input_ids": pad(rows, pad_id, "right"),
        "attention_mask": pad([[1] * len(row) for row in rows], 0, "right"),
        "labels": pad(labels, IGNORED, "right"),
    }


def passes(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def forward_and_back(
    model: Any, train_set: TrainingSet, steps: Sequence[Sequence[int]], make: Collate, size: int, *, autocast: bool
) -> tuple[float, int, int]:
    """Accumulates gradients over `steps`. Loss per response token, tokens, and columns computed."""
    loss, tokens, columns = 0.0, 0, 0
    responses = sum(len(train_set.responses[i]) for step in steps for i in step)
    for step in steps:
        for chosen in passes(step, size):
            batch = make([train_set[i] for i in chosen])
            batch.pop("index", None)
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                part = model(**batch, use_cache=False, num_items_in_batch=responses).loss
            part.backward()
            loss += part.item()
            tokens += int(batch["attention_mask"].sum())
            columns += batch["attention_mask"].numel()
    return loss, tokens, columns


def steps_of(train_set: TrainingSet, batch_size: int, seed: int, *, sort: bool) -> list[list[int]]:
    """An epoch in our order, or the same steps in random order within each step."""
    order = list(LengthGrouped(train_set.lengths, batch_size, seed))
    steps = [list(step) for step in passes(order, batch_size)]
    rng = np.random.default_rng(seed)
    return steps if sort else [rng.permutation(step).tolist() for step in steps]


def speech_ways(options: argparse.Namespace, samples: list[Sample], folder: Path) -> dict[str, Way]:
    ways: dict[str, Way] = {}
    for name, context, cached in (
        ("encoded in every step, 30 s", "full", False),
        ("encoded in every step, trimmed", "trimmed", False),
        ("cached states", "trimmed", True),
    ):
        checkpoint = build(options, context)
        model = prepare_model(checkpoint.model, Stage(name="benchmark")).train()
        train_set = TrainingSet(samples, checkpoint, fill(checkpoint, samples, folder) if cached else None)

        def run(number: int, model: Any = model, train_set: TrainingSet = train_set) -> tuple[float, int]:
            steps = steps_of(train_set, options.batch_size, number, sort=True)
            make = partial(collate, pad_id=0)
            model.zero_grad()
            return forward_and_back(model, train_set, steps, make, options.pass_size, autocast=False)[:2]

        ways[name] = run
    return ways


def fill(checkpoint: Checkpoint, samples: list[Sample], folder: Path) -> SpeechStates:
    states, problems = SpeechStates(folder, checkpoint), Problems()
    states.fill(checkpoint, states.missing(samples), problems, on_progress=lambda *_: None)
    problems.settle("fail")
    return states


COLLATIONS: dict[str, tuple[bool, bool]] = {
    "stock": (False, False),
    "head on responses": (True, False),
    "passes of alike lengths": (False, True),
    "lsm-probe: both": (True, True),
}


def collation_ways(
    options: argparse.Namespace, train_set: TrainingSet, model: Any, columns: dict[str, list[float]], *, autocast: bool
) -> dict[str, Way]:
    """Run a different step in each round; `columns` gets the share of padding positions of each variant."""

    def run(name: str, number: int) -> tuple[float, int]:
        kept, sort = COLLATIONS[name]
        step = steps_of(train_set, options.batch_size, number, sort=sort)[0]
        make = partial(collate if kept else collate_whole, pad_id=0)
        model.zero_grad()
        loss, tokens, total = forward_and_back(model, train_set, [step], make, options.pass_size, autocast=autocast)
        columns.setdefault(name, []).append(1 - tokens / total)
        return loss, tokens

    return {name: partial(run, name) for name in COLLATIONS}


class MasterCopies:
    """AdamW on float32 copies of bfloat16 weights."""

    def __init__(self, model: Any):
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.copies = [p.detach().float().requires_grad_() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.copies, lr=0.0)  # a full update that leaves the weights unchanged

    @torch.no_grad()
    def step(self) -> None:
        for weight, held in zip(self.weights, self.copies, strict=True):
            held.grad = None if weight.grad is None else weight.grad.float()
        self.optimizer.step()
        for weight, held in zip(self.weights, self.copies, strict=True):
            weight.copy_(held)


def precision_ways(options: argparse.Namespace, train_set: TrainingSet, model: Any) -> dict[str, Way]:
    """Gradients of one step, and the update."""
    rounded = copy.deepcopy(model).bfloat16()
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)  # as above

    def run(model: Any, optimizer: Any, autocast: bool, number: int) -> tuple[float, int]:
        step = steps_of(train_set, options.batch_size, number, sort=True)[0]
        model.zero_grad()
        make = partial(collate, pad_id=0)
        loss, tokens, _ = forward_and_back(model, train_set, [step], make, options.pass_size, autocast=autocast)
        optimizer.step()
        return loss, tokens

    return {
        "float32": partial(run, model, adam, False),
        "bfloat16 autocast": partial(run, model, adam, True),
        "bfloat16 weights, float32 copies": partial(run, rounded, MasterCopies(rounded), False),
    }


def own_clock() -> float:
    """CPU seconds of this process if it has one thread, otherwise wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def compare(title: str, ways: dict[str, Way], rounds: int, *, exact: bool) -> dict[str, Any]:
    """Time the variants alternately.

    Raises:
        AssertionError: with `exact`, their losses differ by more than rounding.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    worked: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, list[int]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:  # rotate, because the first position in a round differs in speed
            began, work = time.perf_counter(), own_clock()
            loss, count = ways[name](number)
            seconds[name].append(time.perf_counter() - began)
            worked[name].append(own_clock() - work)
            losses[name].append(loss)
            tokens[name].append(count)
            print(f"{title}, {name}: {seconds[name][-1]:.1f} s ({worked[name][-1]:.1f}), loss {loss:.6f}", flush=True)
    first = names[0]
    apart = {name: max(abs(a / b - 1) for a, b in zip(losses[name], losses[first], strict=True)) for name in names}
    assert not exact or max(apart.values()) < TOLERANCE, f"{title}: losses differ: {losses}"
    return {
        name: {
            "seconds": [round(s, 2) for s in seconds[name]],
            "own_seconds": [round(s, 2) for s in worked[name]],
            "tokens_per_second": round(median(t / s for t, s in zip(tokens[name], worked[name], strict=True)), 1),
            "ratio": round(median(a / b for a, b in zip(worked[first], worked[name], strict=True)), 3),
            "loss": round(losses[name][0], 6),
            "loss_differs_by": float(f"{apart[name]:.1e}"),
        }
        for name in names
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    load = os.getloadavg()[0]
    found: dict[str, Any] = {}
    epoch = read_samples(options.data, options.samples)
    # States and loss depend on the context, so only the last two compute the same.
    found["speech"] = rows = compare("speech", speech_ways(options, epoch, folder), options.rounds, exact=False)
    trimmed, cached = (row["loss"] for row in list(rows.values())[1:])
    assert abs(trimmed / cached - 1) < TOLERANCE, "cached states give another loss"
    samples = read_samples(options.data, options.batch_size * options.rounds)
    checkpoint = build(options, "trimmed")
    train_set = TrainingSet(samples, checkpoint, fill(checkpoint, samples, folder))
    model = prepare_model(checkpoint.model, Stage(name="benchmark")).train()
    for precision, autocast in (("float32", False), ("bfloat16 autocast", True)):
        padding: dict[str, list[float]] = {}
        ways = collation_ways(options, train_set, model, padding, autocast=autocast)
        rows = compare(f"collation, {precision}", ways, options.rounds, exact=not autocast)
        for name, row in rows.items():
            row["padding"] = round(float(np.mean(padding[name])), 3)
        found[f"collation, {precision}"] = rows
    found["precision"] = compare("precision", precision_ways(options, train_set, model), options.rounds, exact=False)
    tokens = {
        "mean_tokens": round(float(train_set.lengths.mean()), 1),
        "longest": int(train_set.lengths.max()),
        "mean_response_tokens": round(float(np.mean([len(r) for r in train_set.responses])), 1),
    }
    return {"load_average_at_start": round(load, 2), **tokens, "comparisons": found}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(options, Path(folder))
    report = {
        "date": date.today().isoformat(),
        "encoder": "built-in" if options.encoder is None else "given",
        "llm": "built-in" if options.llm is None else "given",
        "device": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("lsm-probe", "torch", "transformers")},
        "epoch_samples": options.samples,
        "batch_size": options.batch_size,
        "pass_size": options.pass_size,
        "rounds": options.rounds,
        "note": options.note,
        **measured,
        "load_average_at_end": round(os.getloadavg()[0], 2),
    }
    with replacing(HERE / "training.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report)


def show(report: dict[str, Any]) -> None:
    for title, rows in report["comparisons"].items():
        table = Table(title=title, title_justify="left")
        for column in ("way", "seconds", "tokens/s", "times as fast", "padding", "loss"):
            table.add_column(column, justify="left" if column == "way" else "right")
        for name, row in rows.items():
            padding = f"{row['padding']:.1%}" if "padding" in row else ""
            numbers = f"{median(row['own_seconds']):.1f}", f"{row['tokens_per_second']:.0f}", f"{row['ratio']:.2f}"
            table.add_row(name, *numbers, padding, f"{row['loss']:.4f}")
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
