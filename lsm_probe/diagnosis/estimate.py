"""Estimates the duration of a diagnosis from a short trial on the first model that is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

import torch

from lsm_probe.diagnosis.plan import Part
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.runner.options import ResponseOptions
from lsm_probe.runner.prepared_samples import prepare, teacher_forced_inputs

_TRIAL_TOKENS = 8
_CAPTURE_SLOWDOWN = 1.6
"""A pass that captures attention takes this many times as long."""


@dataclass(frozen=True)
class Speed:
    """Results of a trial.

    Attributes:
        prompt_tokens: length of the longest prompt.
        seconds_per_token: time for a pass over prompts, in a batch.
        seconds_per_new_token: time to generate a token, for each sample of a batch.
        layers: number of layers of the LLM.
    """

    prompt_tokens: float
    seconds_per_token: float
    seconds_per_new_token: float
    layers: int

    def seconds(self, part: Part) -> float:
        """Estimated duration of a part, seconds."""
        response = part.options.get("max_new_tokens", 0)
        whole = self.prompt_tokens + response
        generating = response * self.seconds_per_new_token
        passes: Mapping[str, float] = {
            "attention": _CAPTURE_SLOWDOWN * whole,
            "sensitivity": self._prompts(part) * whole,
            "base-words": self._prompts(part) * whole,
            "knockout": _CAPTURE_SLOWDOWN * (self.prompt_tokens + (2 * self.layers + 3) * response),
            "alignment": 2 * self.prompt_tokens,
        }
        own = generating if part.name in ("attention", "transcription") else 0.0
        return len(part.samples) * (own + passes.get(part.name, 0.0) * self.seconds_per_token)

    def _prompts(self, part: Part) -> int:
        """Number of prompts that each response is scored with: a pool of instructions and a pool of sources."""
        pool = part.options.get("instructions")
        return len(pool.tasks) + part.options["sources"] if pool else 0


@torch.no_grad()
def measure_speed(checkpoint: Checkpoint, part: Part, batch_size: int) -> Speed | None:
    """Generate a few tokens for the first samples of a part, and run one pass over them.

    Returns:
        None if none of these samples can be used.
    """
    samples = part.samples[:batch_size]
    prepare(checkpoint, samples[:1], ResponseOptions(max_new_tokens=1), "skip")  # one-time setup
    items, _ = prepare(checkpoint, samples, None, "skip")
    if not items:
        return None
    embedded = [item.embedded for item in items]
    begun = perf_counter()
    found = checkpoint.generate(embedded, max_new_tokens=_TRIAL_TOKENS)
    generating = perf_counter() - begun
    for item, response in zip(items, found, strict=True):
        item.response = response
    inputs, mask = teacher_forced_inputs(items, embedded)
    begun = perf_counter()
    checkpoint.llm(inputs_embeds=inputs, attention_mask=mask, use_cache=False, logits_to_keep=1)
    _wait(inputs)
    one_pass = perf_counter() - begun
    made = max(1, max(map(len, found)))
    # Generation starts with a pass over the prompts.
    each = max(0.0, generating - one_pass) / (made * len(items))
    layers = checkpoint.llm.config.get_text_config().num_hidden_layers
    return Speed(inputs.shape[1], one_pass / (len(items) * inputs.shape[1]), each, layers)


def _wait(tensor: torch.Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
