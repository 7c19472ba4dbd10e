"""Compare sensitivity and knockout with the minimum number of forward passes and with a naive implementation.

Usage: OMP_NUM_THREADS=1 python analyses/performance/beyond_attention.py [--device cuda --dtype bfloat16] [--llm FOLDER]
Writes beyond_attention.json. One text LLM, prompts of the built-in utterances with fixed responses; every round runs
each method once, and ratios are medians over rounds. If the numbers differ, the script stops without a result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import in_fresh_process, machine, peak_mib
from torch import Tensor

import lsm_probe
from lsm_probe.files import replacing
from lsm_probe.instruments.capture import capture
from lsm_probe.instruments.scoring import gathered_log_probabilities, log_probabilities
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.kv_cache import CACHE
from lsm_probe.probes.knockout.measure import _TOKENS, _measure, plan_knockouts
from lsm_probe.probes.sensitivity.counterfactuals import OtherSources, other_instructions, pool_of
from lsm_probe.runner.prepared_samples import PreparedSample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="builtin:llm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--response", type=int, default=32, help="tokens of each response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", nargs=2, metavar=("PROBE", "WAY"), help="used by itself, in fresh processes")
    options = parser.parse_args()
    checkpoint = lsm_probe.load(options.llm, device=options.device, dtype=options.dtype)
    samples = lsm_probe.read_manifest("builtin:probe")
    items = [_subject(checkpoint, sample, options.response) for sample in samples[: options.samples]]
    pool = pool_of(samples)
    others = OtherSources(checkpoint, samples, 0, "fail")
    pools = [_pools(checkpoint, item, pool, others) for item in items]
    ways = {
        "sensitivity": _sensitivity_ways(checkpoint, items, pools),
        "knockout": _knockout_ways(checkpoint, items),
    }
    if options.memory_of:
        probe, way = options.memory_of
        print(peak_mib(ways[probe][way], options.device))
        return
    result = {
        "settings": {key: value for key, value in vars(options).items() if key != "memory_of"},
        "prompt_tokens": [len(item.prompt) for item in items],
        **{probe: _compare(found, options) for probe, found in ways.items()},
        "peak_mib_above_model": {
            probe: {way: in_fresh_process(probe, way) for way in found} for probe, found in ways.items()
        },
        **machine(options.device),
    }
    with replacing(Path(__file__).with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _subject(checkpoint: Checkpoint, sample: Any, tokens: int) -> PreparedSample:
    item = PreparedSample(sample, checkpoint.encode(sample.instruction, sample.text), checkpoint)
    item.response = checkpoint.generate([item.embedded], max_new_tokens=tokens)[0]
    return item


def _pools(checkpoint: Checkpoint, item: PreparedSample, pool: Any, others: OtherSources) -> list[list[Tensor]]:
    """The embedded prompts of both pools; in each, the sample's own prompt is first."""
    sample = item.sample
    instructions = [checkpoint.encode(i, sample.text) for i in other_instructions(sample, pool, "tasks")]
    sources = [checkpoint.encode(sample.instruction, s) for s in others.draw(sample, len(instructions))]
    return [[item.embedded, *checkpoint.embed(prompts)] for prompts in (instructions, sources)]


Way = Callable[[], list[Tensor]]


def _sensitivity_ways(
    checkpoint: Checkpoint, items: Sequence[PreparedSample], pools: Sequence[list[list[Tensor]]]
) -> dict[str, Way]:
    llm = checkpoint.llm

    def shared() -> list[Tensor]:
        return [log_probabilities(llm, p, s.response) for s, both in zip(items, pools, strict=True) for p in both]

    def batched() -> list[Tensor]:
        """The minimum number of passes without prefix sharing: each pool as one right-padded batch."""
        return [_plain(llm, p, s.response) for s, both in zip(items, pools, strict=True) for p in both]

    def naive() -> list[Tensor]:
        """One prompt after another."""
        return [
            torch.cat([_plain(llm, [prompt], s.response) for prompt in p])
            for s, both in zip(items, pools, strict=True)
            for p in both
        ]

    return {"lsm-probe": shared, "plain batches": batched, "one by one": naive}


@torch.no_grad()
def _plain(llm: Any, embedded: Sequence[Tensor], response: Sequence[int]) -> Tensor:
    ids = torch.tensor(response, device=embedded[0].device)
    said = llm.get_input_embeddings()(ids[:-1])
    rows = [torch.cat([prompt, said]) for prompt in embedded]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r), dtype=torch.long) for r in rows], batch_first=True)
    logits = llm(
        inputs_embeds=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        attention_mask=mask.to(ids.device),
        use_cache=False,
    ).logits
    ends = [len(row) for row in rows]
    chosen = torch.stack([line[end - len(ids) : end] for line, end in zip(logits, ends, strict=True)])
    return gathered_log_probabilities(chosen, ids)


def _knockout_ways(checkpoint: Checkpoint, items: Sequence[PreparedSample]) -> dict[str, Way]:
    llm: Any = checkpoint.llm
    layers = llm.config.get_text_config().num_hidden_layers
    plan = plan_knockouts(layers, 5)

    def ours() -> list[Tensor]:
        found = []
        with capture(llm) as captured:
            for item in items:
                measured = _measure(checkpoint, captured, item, plan)
                assert isinstance(measured, dict)
                found.append(torch.from_numpy(measured["fall"]))
        return found

    @torch.no_grad()
    def floor() -> list[Tensor]:
        """The same passes on the prompt's cache, without masks and without the self-check."""
        for item in items:
            ids = torch.tensor(item.response, device=item.embedded.device)
            rows = torch.cat([item.embedded[-1:], llm.get_input_embeddings()(ids[:-1])])
            cache = llm(inputs_embeds=item.embedded[None, :-1], use_cache=True, logits_to_keep=1)[CACHE]
            together = _TOKENS // len(rows)
            for first in range(0, len(plan), together):
                part = plan[first : first + together]
                own = deepcopy(cache)
                own.batch_repeat_interleave(len(part))
                logits = llm(inputs_embeds=rows.expand(len(part), -1, -1), **{CACHE: own}).logits
                gathered_log_probabilities(logits, ids)
        return []

    @torch.no_grad()
    def naive() -> list[Tensor]:
        """The usual way: a whole pass over prompt and response for each knockout, batches of 8, without masks."""
        for item in items:
            for first in range(0, len(plan), 8):
                _plain(llm, [item.embedded] * len(plan[first : first + 8]), item.response)
        return []

    return {"lsm-probe": ours, "same passes, nothing cut": floor, "whole passes": naive}


def _compare(ways: dict[str, Way], options: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, list[Tensor]] = {}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            results[name] = way()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first is the warm-up
                seconds[name].append(time.perf_counter() - began)
    first = results.pop("lsm-probe")
    for name, found in results.items():
        for a, b in zip(found, first, strict=False):
            if not torch.allclose(a, b, atol=1e-3 if options.dtype == "float32" else 0.5):
                raise SystemExit(f"{name} gives other numbers: no table")
    ratios = {
        name: [round(a / b, 3) for a, b in zip(took, seconds["lsm-probe"], strict=True)]
        for name, took in seconds.items()
        if name != "lsm-probe"
    }
    return {
        "seconds": {name: [round(second, 3) for second in took] for name, took in seconds.items()},
        "times_lsm_probe": {name: {"median": median(r), "rounds": r} for name, r in ratios.items()},
    }


if __name__ == "__main__":
    main()
