"""The attention probe: how much the generating rows attend to the instruction and to the source, layer by layer.

For each sample, the probe gets a response (greedy, or a given one) and runs one teacher-forced pass over prompt and
response. It then sums, by segment, the norm-based attention of the rows that predict the response's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lsm_probe.data.sample import Sample
from lsm_probe.instruments.backends import RunPass, backend_versions, open_backend
from lsm_probe.instruments.capture import LayerAttention
from lsm_probe.instruments.norms import norm_attention, wanted_keys
from lsm_probe.instruments.self_check import error_summary
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import SEGMENTS, AnswerSums, AttentionResult, TokenScores
from lsm_probe.runner.identity import Control
from lsm_probe.runner.measurement_run import Measured, MeasurementRun, Unusable, stack
from lsm_probe.runner.options import MeasureKeywords, split_options
from lsm_probe.runner.prepared_samples import PreparedSample, teacher_forced_inputs
from lsm_probe.runner.progress import Record
from lsm_probe.runner.result import package_versions


def attention(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    heads: Literal["sum_then_norm", "mean_of_norms"] = "sum_then_norm",
    segment: Literal["mean", "sum"] = "mean",
    aggregate: Literal["mean_of_ratios", "ratio_of_means"] = "mean_of_ratios",
    span: Literal["instruction", "instruction+template"] = "instruction",
    tokens: bool = False,
    backend: Literal["native", "transformer-lens", "nnsight"] = "native",
    source_lengths: Mapping[str, int] | None = None,
    source_length_of: Sequence[str] = (),
    **options: Unpack[MeasureKeywords],
) -> AttentionResult:
    """Measure norm-based attention and the instruction proportion eta (arXiv 2410.03798, section 3.2).

    Args:
        checkpoint: what [`lsm_probe.load`] returns.
        samples: with `audio` for an LSM, `text` for a text LLM; with `target` for `response="reference"`.
        heads, segment, aggregate, span: how the result computes eta; see [`Conventions`]. `result.with_conventions`
            changes them later without a forward pass.
        tokens: keep the scores of single prompt tokens too.
        backend: which library captures the activations: this package (`native`), or TransformerLens or nnsight as an
            independent check (text LLMs and LSMs; the extra `interop`). All of them generate in the same way. In
            float32 they agree to 1e-4 relative; in half precision eager attention rounds differently, by several
            percent of a norm.
        source_lengths: number of source tokens by sample id: a text LLM's transcript is repeated or cut to this length.
            The lengths of another checkpoint, `result.source_lengths()`, give the length- and position-matched control.
        source_length_of: names of the checkpoints that have these source lengths.
        options: options that all measurements share; see [`ResponseOptions`] and [`RunOptions`].

    Returns:
        An [`AttentionResult`], accumulated in float32; it can be read under every convention except `response`.

    Raises:
        InputError: a sample cannot be used (under `on_error="fail"`), none is left, the backend is not installed, a
            value is unknown, or the model's attention cannot be measured exactly.

    Example:
        >>> import lsm_probe
        >>> checkpoint = lsm_probe.load("builtin:untrained", device="cpu")
        >>> samples = lsm_probe.read_manifest("builtin:probe")[:2]
        >>> lsm_probe.attention(checkpoint, samples, max_new_tokens=4).eta().mean.shape
        (30,)
    """
    responses, run = split_options(options)
    conventions = Conventions(heads, segment, aggregate, span, responses.response)
    measurement = MeasurementRun(
        checkpoint=checkpoint,
        samples=samples,
        responses=responses,
        options=run,
        settings={"tokens": tokens, "backend": backend},
        source_lengths=source_lengths,
        control=None if source_lengths is None else Control(checkpoint.name, tuple(source_length_of)),
    )
    with open_backend(backend, checkpoint.llm) as run_pass:
        records, common = measurement.run(lambda items: _measure(checkpoint, run_pass, items, tokens))
    errors = [torch.from_numpy(record.arrays["errors"]) for record in records]
    return AttentionResult(
        **common,
        **stack(records, "norms", "head_norms", "tokens"),
        rows=np.array([e.shape[1] for e in errors]),
        conventions=conventions,
        self_check={"backend": backend, **error_summary(errors, checkpoint.llm.dtype)},
        versions=package_versions() | backend_versions(backend),
        token_scores=_token_scores(records),
        answer=_answer_sums(records),
    )


@torch.no_grad()
def _measure(
    checkpoint: Checkpoint, run_pass: RunPass, items: Sequence[PreparedSample], keep_tokens: bool
) -> list[Measured]:
    """One teacher-forced pass over prompts and responses, right-padded: the arrays of a [`Record`] for each sample."""
    inputs, mask = teacher_forced_inputs(items, [s.embedded for s in items])
    parts = [s.measured for s in items]
    rows, row_mask = generating_rows(
        [len(s.prompt) + part.start for s, part in zip(items, parts, strict=True)],
        [part.stop - part.start for part in parts],
    )
    thinking = [s.thought.tokens if s.thought and s.part == "all" else 0 for s in items]
    sums = SegmentSums([s.prompt for s in items], row_mask, keep_tokens, thinking)
    errors = run_pass(inputs, mask, rows, row_mask, sums)
    arrays = sums.by_sample()
    for array, error in zip(arrays, errors, strict=True):
        array["errors"] = error.float().numpy()
    return [array if _has_norms(array["norms"]) else Unusable("zero norms") for array in arrays]


def generating_rows(prompt_lengths: Sequence[int], response_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The positions whose logits predict the response's tokens: each is the position before such a token.

    If only a part of the response is measured, the part before it counts as prompt.

    Returns:
        `(rows, row_mask)`, both `[batch, longest response]`. Padding repeats a sample's first row, so that it stays
        a real position, and is False in the mask.
    """
    steps = torch.arange(max(response_lengths))
    row_mask = steps < torch.tensor(response_lengths)[:, None]
    rows = torch.tensor(prompt_lengths)[:, None] - 1 + steps * row_mask
    return rows, row_mask


class SegmentSums:
    """Visitor of a captured pass: sums each layer's norm-based attention by segment, on the layer's device.

    Args:
        prompts: the batch's prompts; prompt tokens start at position 0 (right padding).
        row_mask: `[batch, rows]`, on the CPU, the real generating rows.
        keep_tokens: also keep A_j of every prompt token.
        thinking: how many of each sample's rows predict thinking; if any do, the sums over the other rows, which
            predict the answer, are kept too.
    """

    def __init__(self, prompts: Sequence[Prompt], row_mask: Tensor, keep_tokens: bool, thinking: Sequence[int] = ()):
        self.prompts = prompts
        self.keep_tokens = keep_tokens
        self.answer_mask: Tensor | None = None
        masks = {"": row_mask}
        if any(thinking):
            is_answer = torch.arange(row_mask.shape[1]) >= torch.tensor(thinking)[:, None]
            self.answer_mask = masks["answer_"] = row_mask & is_answer
        self.kinds = list(masks)
        # NaN (0 / 0) if no row predicts an answer.
        row_weights = torch.stack([mask / mask.sum(1, keepdim=True) for mask in masks.values()])
        segments = pad_sequence([torch.tensor(p.segments) for p in prompts], batch_first=True)
        keys = wanted_keys(segments != Segment.PADDING)
        self.members = _membership(segments)
        members = self.members.float()

        @cache
        def prepared(device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
            return members.to(device), None if keys is None else keys.to(device), row_weights.to(device)

        self._prepared = prepared
        self.layers: list[dict[str, Tensor]] = []

    def __call__(self, layer: LayerAttention) -> None:
        members, keys, row_weights = self._prepared(layer.alpha.device)
        length = members.shape[1]
        alpha, value = layer.alpha[..., :length], layer.value[:, :, :length]
        a, a_heads = norm_attention(alpha, value, layer.metric, row_weights, keys)
        sums = [
            torch.cat([one[:, None], heads], 1) @ members.to(a.dtype) for one, heads in zip(a, a_heads, strict=True)
        ]
        found = {f"{kind}sums": own for kind, own in zip(self.kinds, sums, strict=True)}  # [batch, 1 + heads, 5]
        if self.keep_tokens:
            found["token_norms"] = a[0]
        self.layers.append(found)

    def by_sample(self) -> list[dict[str, np.ndarray]]:
        """The arrays of each sample, layers in order."""
        stacked = {"tokens": self.members.sum(1)}
        for name, first in self.layers[0].items():
            values = torch.stack([layer[name].to(first.device) for layer in self.layers], 1).float().cpu()
            if name.endswith("sums"):
                kind = name.removesuffix("sums")
                stacked |= {f"{kind}norms": values[:, :, 0], f"{kind}head_norms": values[:, :, 1:]}
            else:
                stacked[name] = values
        if self.answer_mask is not None:
            stacked["answer_rows"] = self.answer_mask.sum(1)
        arrays = [{name: values[i].numpy() for name, values in stacked.items()} for i in range(len(self.prompts))]
        if self.keep_tokens:
            for array, prompt in zip(arrays, self.prompts, strict=True):
                array["token_norms"] = array["token_norms"][:, : len(prompt)]
                array["token_ids"] = np.array(prompt.input_ids)
                array["token_segments"] = np.array(prompt.segments)
        return arrays


def _membership(segments: Tensor) -> Tensor:
    """Which of the stored `SEGMENTS` each prompt token belongs to: `[batch, keys, 5]`, integers 0 or 1."""
    columns = [segments == Segment[name.upper()] for name in SEGMENTS[:-1]]
    first = torch.zeros_like(columns[0])
    first[:, 0] = segments[:, 0] == Segment.TEMPLATE
    return torch.stack([*columns, first], -1).long()


def _has_norms(norms: np.ndarray) -> bool:
    """Whether instruction and source together received anything in every layer, `norms [layers, segments]`."""
    both = norms[:, SEGMENTS.index("instruction")] + norms[:, SEGMENTS.index("source")]
    return bool(np.isfinite(both).all() and (both > 0).all())


def _answer_sums(records: Sequence[Record]) -> AnswerSums | None:
    """None if no sample thinks. In batches without thinking all rows belong to the answer."""
    if not any("answer_norms" in record.arrays for record in records):
        return None
    arrays = [record.arrays for record in records]
    return AnswerSums(
        norms=np.stack([a.get("answer_norms", a["norms"]) for a in arrays]),
        head_norms=np.stack([a.get("answer_head_norms", a["head_norms"]) for a in arrays]),
        rows=np.array([a.get("answer_rows", a["errors"].shape[1]) for a in arrays]),
    )


def _token_scores(records: Sequence[Record]) -> TokenScores | None:
    if "token_norms" not in records[0].arrays:
        return None
    arrays = [record.arrays for record in records]
    return TokenScores(
        norms=np.concatenate([a["token_norms"] for a in arrays], axis=1),
        ids=np.concatenate([a["token_ids"] for a in arrays]),
        segments=np.concatenate([a["token_segments"] for a in arrays]),
        offsets=np.cumsum([0, *(len(a["token_ids"]) for a in arrays)]),
    )
