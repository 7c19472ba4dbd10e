"""Perplexity of text for LLMs and for the LLMs inside LSMs: what speech training cost them.

Usage: python analyses/text_ability/perplexity.py sentences|answers TEXTS.jsonl OUT.json CHECKPOINT [CHECKPOINT ...]
`sentences`: the LLM is asked to go on with the first half of each `text` and scored on the second half. `answers`: it
is given the text with the sample's own instruction and scored on its `target` (`lsm-probe augment` writes such
manifests). Writes nats per token with the 95 % interval over samples, and paired differences to the first checkpoint.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import lsm_probe
from lsm_probe.bootstrap import cluster_weights, interval, number_clusters
from lsm_probe.data.sample import Sample
from lsm_probe.files import replacing
from lsm_probe.probes.importance import response_loss
from lsm_probe.probes.subjects import Subject

SAMPLES = 100
INSTRUCTION = "Continue the text."


def main() -> None:
    what, texts, out, *names = sys.argv[1:]
    samples = lsm_probe.read_manifest(texts)[:SAMPLES]
    if what == "sentences":
        samples = [_halved(sample) for sample in samples]
    losses = {name: _losses(name, samples) for name in names}
    base = losses[names[0]]
    weights = cluster_weights(number_clusters([sample.text or "" for sample in samples]), 0)
    table = {}
    for name, found in losses.items():
        drawn = _per_token(weights, found)
        nats = found[:, 0].sum() / found[:, 1].sum()
        above = nats - base[:, 0].sum() / base[:, 1].sum()
        table[name] = {
            "nats_per_token": round(float(nats), 4),
            "interval": _rounded(interval(drawn)),
            "perplexity": round(float(np.exp(nats)), 3),
            "above_first": round(float(above), 4),
            "above_first_interval": _rounded(interval(drawn - _per_token(weights, base))),
        }
    with replacing(Path(out)) as path:
        path.write_text(json.dumps({"samples": len(samples), "checkpoints": table}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(table, indent=1))


def _rounded(ends: tuple[np.ndarray, np.ndarray]) -> list[float]:
    return [round(float(end), 4) for end in ends]


def _halved(sample: Sample) -> Sample:
    words = (sample.text or "").split()
    half = len(words) // 2
    given, rest = " ".join(words[:half]), " ".join(words[half:])
    return Sample(id=sample.id, instruction=INSTRUCTION, text=given, target=rest)


@torch.no_grad()
def _losses(name: str, samples: list[Sample]) -> np.ndarray:
    """Summed loss (nats) and number of tokens of each sample's target, `[samples, 2]`."""
    checkpoint = replace(lsm_probe.load(name), source="text")
    rows = []
    for sample in samples:
        prompt = checkpoint.encode(sample.instruction, sample.text or "")
        response = checkpoint.encode_response(sample.target or "")[:-1]  # the sentence's end is not its text
        subject = Subject(sample, prompt, checkpoint, response)
        rows.append((response_loss(checkpoint, subject).item() * len(response), len(response)))
    return np.array(rows)


def _per_token(weights: np.ndarray, losses: np.ndarray) -> np.ndarray:
    return (weights @ losses[:, 0]) / (weights @ losses[:, 1])


if __name__ == "__main__":
    main()
