"""Compare time and memory of importance with those of the forward and backward passes that it needs.

Usage: OMP_NUM_THREADS=1 python analyses/performance/importance.py [--device cuda --dtype bfloat16] [--llm FOLDER]
Writes importance.json. One text LLM, prompts of the built-in utterances, each utterance's transcript as response; every
round runs each variant once, and ratios are medians over rounds. Peak memory is that of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import in_fresh_process, machine, peak_mib

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.files import replacing
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.probes.importance.measure import response_loss
from lsm_probe.runner.prepared_samples import PreparedSample

Way = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="builtin:llm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=4, help="times each transcript is repeated in the response")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", metavar="WAY", help="used by itself, in fresh processes")
    options = parser.parse_args()
    checkpoint = lsm_probe.load(options.llm, device=options.device, dtype=options.dtype)
    samples = [
        sample.model_copy(update={"target": " ".join([sample.text or ""] * options.repeat)})
        for sample in lsm_probe.read_manifest("builtin:probe")[: options.samples]
    ]
    ways = _ways(checkpoint, samples)
    if options.memory_of:
        print(peak_mib(ways[options.memory_of], options.device))
        return
    seconds = _time(ways, options)
    plain = seconds["forward and backward"]
    result = {
        "settings": {key: value for key, value in vars(options).items() if key != "memory_of"},
        "response_tokens": [len(checkpoint.encode_response(sample.target or "")) for sample in samples],
        "seconds": {way: [round(second, 3) for second in took] for way, took in seconds.items()},
        "times_forward_and_backward": {
            way: round(median(a / b for a, b in zip(took, plain, strict=True)), 3) for way, took in seconds.items()
        },
        "peak_mib_above_model": {way: in_fresh_process(way) for way in ways},
        "weights_mib": round(sum(p.numel() * p.element_size() for p in checkpoint.model.parameters()) / 2**20, 1),
        **machine(options.device),
    }
    with replacing(Path(__file__).with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _ways(checkpoint: Checkpoint, samples: Sequence[Sample]) -> dict[str, Way]:
    def plain() -> None:
        """The minimum: forward and backward with all gradients kept until the end, as in a training step."""
        for sample in samples:
            prompt = checkpoint.encode(sample.instruction, sample.text or "")
            item = PreparedSample(sample, prompt, checkpoint, checkpoint.encode_response(sample.target or ""))
            with torch.enable_grad():
                response_loss(checkpoint, item).backward()
            checkpoint.model.zero_grad(set_to_none=True)

    return {
        "forward and backward": plain,
        "importance": lambda: _run(checkpoint, samples),
        "importance, signed": lambda: _run(checkpoint, samples, mode="signed"),
        "importance with masks": lambda: _run(checkpoint, samples, masks=0.05),
    }


def _run(checkpoint: Checkpoint, samples: Sequence[Sample], **options: Any) -> None:
    lsm_probe.importance(checkpoint, samples, **options)


def _time(ways: dict[str, Way], options: argparse.Namespace) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first is the warm-up
                seconds[name].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
