"""Measure the cost of lsm-probe at the size of a 7B model on a GPU (estimate: under ten minutes on an H200).

python analyses/performance/gpu.py                                     # Vicuna-7B's dimensions, 32 layers, bfloat16
python analyses/performance/gpu.py --shape llama-3-8b --parts overhead analysis
python analyses/performance/gpu.py --shape tiny --layers 2 --device cpu --dtype float32 --quick     # does it run?

The weights are random, which needs the same time and memory as trained weights. Only the tokenizer is downloaded
(without a network, use `--tokenizer FOLDER`). Writes gpu_SHAPE.json after each part: hardware, driver,
versions, date and every timing. Not run on a GPU so far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import machine, peak_mib
from shapes import SHAPES, draw_weights, save_shape

import lsm_probe
from lsm_probe.assets import language_model
from lsm_probe.data.sample import Sample
from lsm_probe.files import replacing
from lsm_probe.instruments.capture import capture
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.measure import SegmentSums, generating_rows
from lsm_probe.probes.importance.measure import response_loss
from lsm_probe.runner.prepared_samples import PreparedSample

ROWS = 64
SOURCE_TOKENS, RESPONSE_TOKENS = 88, 60  # approximately those of the paper's samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="vicuna-7b")
    add("--layers", type=int, default=32)
    add("--device", default="cuda")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    add("--tokenizer", type=Path, help="folder of a model whose tokenizer to take; default the embedded LLM's")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--rounds", type=int, default=5)
    add("--quick", action="store_true", help="few and short samples")
    add("--out", type=Path, help="default gpu_SHAPE.json beside this script")
    options = parser.parse_args()
    options.out = options.out or Path(__file__).with_name(f"gpu_{options.shape}.json")
    checkpoint = random_checkpoint(options)
    settings = {name: getattr(options, name) for name in ("shape", "layers", "dtype", "rounds", "quick")}
    result: dict[str, Any] = {"date": date.today().isoformat(), "driver": driver(), "settings": settings}
    result |= machine(options.device)
    for name in options.parts:
        began = time.perf_counter()
        result[name] = PARTS[name](checkpoint, options)
        result[name]["part_seconds"] = round(time.perf_counter() - began, 1)
        print(name, json.dumps(result[name], indent=1), flush=True)
        with replacing(options.out) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def random_checkpoint(options: argparse.Namespace) -> Checkpoint:
    """A text LLM of the shape, with the tokenizer of another model."""
    tokenizer = options.tokenizer or Path(language_model())
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        for name, layers, where in (("tiny", 1, small), (options.shape, options.layers, large)):
            save_shape(name, layers, None, tokenizer, where)
        draw_weights(small, torch.float32, "cpu").save_pretrained(small)
        checkpoint = lsm_probe.load(str(small), device="cpu", dtype="float32")
        model = draw_weights(large, getattr(torch, options.dtype), options.device)
    return replace(checkpoint, name=options.shape, model=model)


def overhead(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """A forward pass with the attention probe against one without, by prompt length and batch."""
    llm: Any = checkpoint.llm
    found = []
    for keys in (16, 32) if options.quick else (128, 512, 1024, 2048):
        for batch in (1, 8):
            ids = torch.randint(0, llm.config.vocab_size, (batch, keys + ROWS), device=llm.device)
            segments = [Segment.INSTRUCTION] * (keys // 4) + [Segment.SOURCE] * (keys - keys // 4)
            prompts = [Prompt([0] * keys, segments)] * batch
            rows, row_mask = generating_rows([keys] * batch, [ROWS] * batch)

            def plain(ids: torch.Tensor = ids) -> Any:
                return llm(ids, use_cache=False, logits_to_keep=1)

            with torch.no_grad(), capture(llm) as captured:

                def probed(prompts: Any = prompts, rows: Any = rows, mask: Any = row_mask, run: Any = plain) -> None:
                    sums = SegmentSums(prompts, mask, keep_tokens=False)
                    with captured.at_rows(rows, mask, sums):
                        run()
                    sums.by_sample()

                found.append({"prompt": keys, "batch": batch, **compare(plain, probed, options)})
    return {"passes": found}


def analysis(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Run the attention probe end to end on 1,200 samples of the paper's size, with given and generated responses."""
    samples = make_samples(4 if options.quick else 1200)
    keywords: Any = {"source_lengths": {sample.id: SOURCE_TOKENS for sample in samples}, "batch_size": 32}
    tokens = 4 if options.quick else RESPONSE_TOKENS
    responses = {sample.id: list(range(10, 10 + tokens)) for sample in samples}
    lsm_probe.attention(checkpoint, samples[:2], responses=responses, **keywords)  # warm-up
    given = seconds(lambda: lsm_probe.attention(checkpoint, samples, responses=responses, **keywords), options)
    generated = seconds(lambda: lsm_probe.attention(checkpoint, samples, max_new_tokens=tokens, **keywords), options)
    return {"samples": len(samples), "responses_given_s": given, "generation_included_s": generated}


def importance(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Parameter importance against the forward and backward passes that it needs."""
    samples = make_samples(2)
    ways: dict[str, Any] = {"importance": {}, "signed": {"mode": "signed"}, "masks": {"masks": 0.05}}
    items = [
        PreparedSample(s, checkpoint.encode(s.instruction, s.text or ""), checkpoint, list(range(10, 10 + ROWS)))
        for s in samples
    ]
    responses = {item.sample.id: item.response for item in items}

    def plain() -> None:
        for item in items:
            with torch.enable_grad():
                response_loss(checkpoint, item).backward()
            checkpoint.model.zero_grad(set_to_none=True)

    def run(keywords: dict[str, Any]) -> Callable[[], Any]:
        return lambda: lsm_probe.importance(checkpoint, samples, responses=responses, **keywords)

    return {name: compare(plain, run(keywords), options) for name, keywords in ways.items()}


def training(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Steps of full fine-tuning with AdamW in the model's dtype: what no training loop can be faster than."""
    llm: Any = checkpoint.llm
    batch, tokens = (2, 16) if options.quick else (8, 256)
    ids = torch.randint(0, llm.config.vocab_size, (batch, tokens), device=llm.device)
    optimizer = torch.optim.AdamW(llm.parameters(), lr=1e-6)

    def step() -> None:
        llm(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    llm.train()
    with torch.enable_grad():
        peak = peak_mib(step, options.device)
        took = [seconds(step, options) for _ in range(options.rounds)]
    llm.eval()
    flops = (
        6 * sum(p.numel() for p in llm.parameters()) * batch * tokens
    )  # of a step, as counted for model FLOP utilisation
    return {
        "tokens_per_s": batch * tokens / median(took),
        "tflops": flops / median(took) / 1e12,
        "seconds": took,
        "peak_mib_above_model": peak,
    }


@torch.no_grad()
def generation(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Greedy generation in a batch against one prompt after another, new tokens per second."""
    count, alone, tokens = (4, 2, 4) if options.quick else (64, 4, 64)
    prompts = [checkpoint.encode(s.instruction, s.text or "") for s in make_samples(count)]
    embedded = checkpoint.embed(prompts)
    speeds: dict[str, list[float]] = {"batched": [], "one_by_one": []}
    for turn in range(3):
        for name, batches in (("batched", [embedded]), ("one_by_one", [[prompt] for prompt in embedded[:alone]])):
            answers: list[list[int]] = []

            def run(batches: Any = batches, answers: list[list[int]] = answers) -> None:
                for batch in batches:
                    answers += checkpoint.generate(batch, max_new_tokens=tokens)

            took = seconds(run, options)
            if turn:  # the first is the warm-up
                speeds[name].append(sum(map(len, answers)) / took)
    return {"prompts": count, "tokens_per_s": speeds}


PARTS: dict[str, Callable[[Checkpoint, argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "analysis": analysis,
    "generation": generation,
    "importance": importance,
    "training": training,  # last, because it changes the weights
}


def compare(plain: Callable[[], Any], other: Callable[[], Any], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both, the median ratio over rounds, and peak memory above that held before."""
    peaks = {name: peak_mib(way, options.device) for name, way in (("plain", plain), ("other", other))}  # and warm-up
    rounds = [(seconds(plain, options), seconds(other, options)) for _ in range(options.rounds)]
    ratio = median(other_s / plain_s for plain_s, other_s in rounds)
    return {"ratio": round(ratio, 4), "seconds": [list(pair) for pair in rounds], "peak_mib": peaks}


def seconds(way: Callable[[], Any], options: argparse.Namespace) -> float:
    began = time.perf_counter()
    way()
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def make_samples(count: int) -> Sequence[Sample]:
    """The transcripts of the built-in utterances, repeated."""
    samples = islice(cycle(lsm_probe.read_manifest("builtin:probe")), count)
    return [sample.model_copy(update={"id": f"s{i}"}) for i, sample in enumerate(samples)]


def driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
