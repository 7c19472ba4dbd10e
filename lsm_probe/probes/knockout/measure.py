"""Attention knockout: how much less likely the response is if some layers cannot attend to a segment.

In a window of layers the generating rows (those whose logits predict the response) do not attend to a segment, and
attention is normalised over the other tokens. The fall in the response's mean log-probability per token is the
segment's contribution through those layers (Geva et al. 2023, arXiv 2304.14767, section 4).

The falls are not bounds. Later tokens have already read the segment and pass it on, even when it is masked in all
layers (this fall is stored too). The masked model is out of distribution, which can make a fall larger, or negative. In
bfloat16 a mean fall is off by about 0.01 nats (measured): curves should use float32, and single heads need it.

On request, single heads of single layers are masked, one at a time. Heads can replace each other, so falls for single
heads are small and need not add up to their joint effect.

The prompt runs once; each knockout runs only the response, on the prompt's key-value cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.instruments.capture import Capture, capture
from lsm_probe.instruments.scoring import NOT_FINITE, gathered_log_probabilities
from lsm_probe.instruments.self_check import error_summary
from lsm_probe.memory import run_in_halves
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.kv_cache import CACHE
from lsm_probe.models.rotary import sequence_length
from lsm_probe.models.segments import Segment
from lsm_probe.probes.knockout.result import SEGMENTS, KnockoutConventions, KnockoutResult
from lsm_probe.runner.measurement_run import Measured, MeasurementRun, Unusable, stack
from lsm_probe.runner.options import MeasureKeywords, split_options
from lsm_probe.runner.prepared_samples import PreparedSample

_TOKENS, _CACHED = 2048, 16384
"""Maximum number of generating rows that run together, over all their knockouts (their logits are a large tensor), and
of cached tokens, because each knockout has its own copy of the prompt's cache."""


@dataclass(frozen=True)
class Knockout:
    """One way to mask.

    Attributes:
        segment: the segment that the response cannot attend to; None masks nothing.
        layers: the layers in which it is masked.
        head: the query head that is masked; None for all heads.
    """

    segment: Segment | None
    layers: range
    head: int | None = None


def knockout(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    window: int = 5,
    single_heads: bool = False,
    layers: Sequence[int] | None = None,
    **options: Unpack[MeasureKeywords],
) -> KnockoutResult:
    """Measure how much less likely the response is without the instruction and without the source, layer by layer.

    Args:
        checkpoint: what [`lsm_probe.load`] returns.
        samples: with `audio` for an LSM, `text` for a text LLM; with `target` for `response="reference"`.
        window: layers masked together around each layer in turn (an even number has one more after it). At both ends
            the window holds fewer layers, which flattens the curves there.
        single_heads: also mask single heads, which takes `2 * layers * heads` further knockouts for each sample.
        layers: the layers whose heads are masked one by one; all layers if None.
        options: options that all measurements share; see [`ResponseOptions`] and [`RunOptions`].

    Raises:
        InputError: a sample cannot be used (under `on_error="fail"`), none is left, the window is not a positive
            number, `layers` names none of the model's or comes without `single_heads`, the response part is unknown, or
            the model's attention cannot be captured and masked exactly.
    """
    if window < 1:
        raise InputError(f"--window {window} is not a number of layers: give 1 or more")
    head_layers = _head_layers(checkpoint, single_heads, layers)
    responses, run = split_options(options)
    settings = {"window": window, "head_layers": head_layers}
    measurement = MeasurementRun(
        checkpoint=checkpoint, samples=samples, responses=responses, options=run, settings=settings
    )
    heads = checkpoint.llm.config.get_text_config().num_attention_heads
    with capture(checkpoint.llm) as captured:
        plan = plan_knockouts(len(captured.layers), window) + plan_heads(head_layers, heads)
        records, common = measurement.run(lambda items: [_measure(checkpoint, captured, s, plan) for s in items])
    errors = [torch.from_numpy(record.arrays["errors"]) for record in records]
    check = error_summary(errors, checkpoint.llm.dtype)
    check["worst"] = max(float(record.arrays["worst"]) for record in records)
    return KnockoutResult(
        **common,
        **stack(records, "log_prob", "fall", "fall_all_layers", "fall_heads"),
        head_layers=head_layers,
        conventions=KnockoutConventions(window, responses.response),
        self_check=check,
    )


def plan_knockouts(layers: int, window: int) -> list[Knockout]:
    """No masking; each segment in each window; each segment in all layers."""
    before = (window - 1) // 2
    windows = [range(max(0, i - before), min(layers, i - before + window)) for i in range(layers)]
    return [
        Knockout(None, range(0)),
        *(Knockout(segment, chosen) for segment in SEGMENTS for chosen in windows),
        *(Knockout(segment, range(layers)) for segment in SEGMENTS),
    ]


def plan_heads(layers: Sequence[int], heads: int) -> list[Knockout]:
    """Each segment masked for each single head of these layers."""
    return [
        Knockout(segment, range(layer, layer + 1), head)
        for segment in SEGMENTS
        for layer in layers
        for head in range(heads)
    ]


def _head_layers(checkpoint: Checkpoint, heads: bool, layers: Sequence[int] | None) -> list[int]:
    """The layers whose heads are masked one by one, in order."""
    if not heads:
        if layers is not None:
            raise InputError("--layers chooses the layers whose heads are knocked out: give --single-heads too")
        return []
    depth = checkpoint.llm.config.get_text_config().num_hidden_layers
    chosen = sorted(set(range(depth) if layers is None else layers))
    beyond = [layer for layer in chosen if not 0 <= layer < depth]
    if beyond or not chosen:
        named = f"names layer {beyond[0]}, but" if beyond else "names no layer:"
        raise InputError(f"--layers {named} {checkpoint.name} has layers 0 to {depth - 1}")
    return chosen


@torch.no_grad()
def _measure(checkpoint: Checkpoint, captured: Capture, item: PreparedSample, plan: Sequence[Knockout]) -> Measured:
    llm: Any = checkpoint.llm
    heads = llm.config.get_text_config().num_attention_heads
    ids = torch.tensor(item.response, device=item.embedded.device)
    # The generating rows: the prompt's last token, then all response tokens except the last.
    rows = torch.cat([item.embedded[-1:], llm.get_input_embeddings()(ids[:-1])])
    length = len(item.prompt) + len(rows)
    with sequence_length(length):
        output = llm(inputs_embeds=item.embedded[None, :-1], use_cache=True, logits_to_keep=1)
        cache = getattr(output, CACHE)
    errors: list[np.ndarray] = []  # errors of the self-check, for each knockout `[layers, rows]`

    def run(part: Sequence[Knockout]) -> list[Tensor]:
        own_cache = deepcopy(cache)
        own_cache.batch_repeat_interleave(len(part))
        everywhere = torch.arange(len(rows)).expand(len(part), -1)
        blocking = _Blocking(item, part, len(captured.layers), heads)
        with captured.at_rows(everywhere, torch.ones_like(everywhere, dtype=torch.bool), block=blocking):
            logits = llm(
                inputs_embeds=rows.expand(len(part), -1, -1), logits_to_keep=len(rows), **{CACHE: own_cache}
            ).logits
        errors.extend(e.float().numpy() for e in captured.errors_by_sample())
        return list(gathered_log_probabilities(logits, ids)[:, item.measured].mean(1))

    together = max(1, min(_TOKENS // len(rows), _CACHED // length))
    parts = (plan[first : first + together] for first in range(0, len(plan), together))
    with sequence_length(length):
        means = torch.stack([mean for part in parts for mean in run_in_halves(run, part)]).cpu()
    if not means.isfinite().all():
        return Unusable(NOT_FINITE, fault=True)
    falls = (means[0] - means[1:]).numpy()
    n = len(SEGMENTS) * len(captured.layers)
    windows, whole, single = np.split(falls, [n, n + len(SEGMENTS)])
    return {
        "log_prob": means[0].numpy(),
        "fall": windows.reshape(len(SEGMENTS), -1),
        "fall_all_layers": whole,
        "fall_heads": single.reshape(len(SEGMENTS), -1, heads),
        "errors": errors[0],  # without masking
        "worst": np.max([e.max() for e in errors]),
    }


class _Blocking:
    """The mask that each knockout of a pass applies in a layer: see [`lsm_probe.instruments.capture.Block`]."""

    def __init__(self, item: PreparedSample, part: Sequence[Knockout], layers: int, heads: int):
        device = item.embedded.device
        keys = len(item.prompt) + len(item.response) - 1
        segments = torch.zeros(keys, dtype=torch.long)
        segments[: len(item.prompt)] = torch.tensor(item.prompt.segments)
        self.hidden = torch.stack([segments == (cut.segment or -1) for cut in part]).to(device)
        # If all heads are masked, one mask serves all of them.
        columns = range(heads if any(cut.head is not None for cut in part) else 1)
        self.meant = torch.tensor([[cut.head in (None, head) for head in columns] for cut in part], device=device)
        self.cut_layers = {layer for cut in part for layer in cut.layers}
        active = [[[layer in cut.layers] for cut in part] for layer in range(layers)]
        self.active = torch.tensor(active, device=device)  # [layers, part, 1]

    def __call__(self, layer: int) -> Tensor | None:
        if layer not in self.cut_layers:
            return None
        return self.hidden[:, None] & (self.meant & self.active[layer])[:, :, None]
