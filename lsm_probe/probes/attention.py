"""The attention probe: what the generating rows take from instruction and from source, layer by layer.

For each sample: answer (greedily, or take a given response), one teacher-forced pass over prompt and response, and
the norm-based attention of the rows that predict the response's tokens, summed by segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lsm_probe.data.audio import read_audio
from lsm_probe.data.manifest import fingerprint
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.memory import run_in_halves
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt
from lsm_probe.models.segments import Segment
from lsm_probe.probes.capture import Capture, LayerAttention, capture, error_summary
from lsm_probe.probes.conventions import Conventions
from lsm_probe.probes.norms import norm_attention
from lsm_probe.probes.progress import Progress
from lsm_probe.probes.record import Record
from lsm_probe.probes.result import SEGMENTS, AttentionResult, TokenScores, package_versions

BATCH_SIZE = 8
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Settings:
    """What decides the stored numbers: a run resumes only under the same.

    Attributes:
        response: `generated` or `reference`.
        max_new_tokens: longest generated response.
        source_lengths: source tokens by sample id, for a length-matched text control.
        responses: response token ids by sample id, taken instead of generating.
        tokens: keep the scores of single tokens.
    """

    response: Literal["generated", "reference"] = "generated"
    max_new_tokens: int = MAX_NEW_TOKENS
    source_lengths: Mapping[str, int] | None = None
    responses: Mapping[str, list[int]] | None = None
    tokens: bool = False


def attention(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    heads: Literal["sum_then_norm", "mean_of_norms"] = "sum_then_norm",
    segment: Literal["mean", "sum"] = "mean",
    aggregate: Literal["mean_of_ratios", "ratio_of_means"] = "mean_of_ratios",
    span: Literal["instruction", "instruction+template"] = "instruction",
    response: Literal["generated", "reference"] = "generated",
    max_new_tokens: int = MAX_NEW_TOKENS,
    responses: Mapping[str, list[int]] | None = None,
    source_lengths: Mapping[str, int] | None = None,
    tokens: bool = False,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_error: Literal["fail", "skip"] = "fail",
    data: Mapping[str, Any] | None = None,
    progress_folder: Path | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> AttentionResult:
    """Measures norm-based attention and the instruction proportion eta (arXiv 2410.03798, section 3.2).

    Args:
        checkpoint: what [`lsm_probe.load`] returns.
        samples: with `audio` for an LSM, `text` for a text LLM; with `target` for `response="reference"`.
        heads, segment, aggregate, span: how the result reads itself; see [`Conventions`]. They can be changed later
            at no cost with `result.with_conventions`.
        response: `generated` answers greedily with at most `max_new_tokens` (an EOS alone is a response of one token);
            `reference` takes the sample's target, closed with EOS.
        max_new_tokens: longest generated response, in tokens.
        responses: response token ids by sample id, taken instead of generating (`result.responses()` of another run).
        source_lengths: number of source tokens by sample id: a text LLM's transcript is repeated or cut to it. With
            another checkpoint's `result.source_lengths()` this is the length- and position-matched control.
        tokens: keep the scores of single prompt tokens too.
        batch_size: samples run together; halved where memory runs out. For given responses it changes the numbers by
            rounding alone: 1e-5 relative in float32.
        seed: of the bootstrap.
        on_error: `fail` stops at a sample that cannot be used, `skip` leaves it out and counts it.
        data: identity of the data as stored with the result; by default what [`describe_data`] says of `samples`.
        progress_folder: where finished batches are kept, so that an interrupted run goes on from there.
        on_progress: called with the number of finished samples.

    Returns:
        An [`AttentionResult`]; every convention but `response` can be read from it.

    Raises:
        InputError: if a sample cannot be used (under `on_error="fail"`), none is left, or the model's attention
            cannot be measured exactly.
    """
    conventions = Conventions(heads, segment, aggregate, span, response)
    settings = Settings(response, max_new_tokens, source_lengths, responses, tokens)
    _check_samples(checkpoint, samples, settings)
    data = dict(data or describe_data(samples))
    description = {
        "name": checkpoint.name,
        "source": checkpoint.source,
        "template": checkpoint.template,
        "dtype": str(checkpoint.llm.dtype).removeprefix("torch."),
        "max_new_tokens": max_new_tokens,
        **({} if responses is None else {"responses": "given"}),
        **({} if source_lengths is None else {"control": "transcript repeated or cut to given lengths"}),
        **checkpoint.identity,
    }
    progress = Progress(
        progress_folder,
        {
            "checkpoint": description,
            "data": data,
            "settings": vars(settings),
            "batch_size": batch_size,
            "versions": package_versions(),
        },
    )
    records: list[Record] = []
    with capture(checkpoint.llm) as captured:
        for first in range(0, len(samples), batch_size):
            batch = samples[first : first + batch_size]
            done = progress.get(first)
            records += done or progress.put(first, _run(checkpoint, captured, batch, settings, on_error))
            on_progress(len(records))
    return _collect(records, description, data, conventions, seed)


def describe_data(samples: Sequence[Sample], name: str = "samples") -> dict[str, Any]:
    """What a result stores about its data: name, sha256 of what goes into prompts and targets, number of samples."""
    return {"name": name, "sha256": fingerprint(samples), "n_samples": len(samples)}


def _check_samples(checkpoint: Checkpoint, samples: Sequence[Sample], settings: Settings) -> None:
    """Refuses at once what would otherwise fail hours into a run."""
    if not samples:
        raise InputError("there are no samples to probe: the manifest, or what --limit leaves of it, is empty")
    if len({sample.id for sample in samples}) < len(samples):
        raise InputError("two samples have the same id: ids must differ")
    needed = {"audio" if checkpoint.source == "speech" else "text"}
    if settings.response == "reference" and settings.responses is None:
        needed.add("target")
    for key in sorted(needed):
        without = [sample.id for sample in samples if getattr(sample, key) is None]
        if without:
            raise InputError(
                f"{len(without)} of {len(samples)} samples have no `{key}`, which {checkpoint.name} needs here "
                f"(first: {without[0]}): add it to the manifest"
            )
    with_context = [sample.id for sample in samples if sample.context is not None]
    if with_context:
        raise InputError(
            f"{len(with_context)} samples carry a `context` (first: {with_context[0]}), which the attention probe does "
            "not put into the prompt: write it into the instruction, or leave it out"
        )
    if settings.responses is not None:
        without = [sample.id for sample in samples if sample.id not in settings.responses]
        if without:
            raise InputError(f"the given responses hold none for {len(without)} samples (first: {without[0]})")
        vocabulary: int = checkpoint.llm.config.get_text_config().vocab_size
        if any(not 0 <= token < vocabulary for sample in samples for token in settings.responses[sample.id]):
            raise InputError(f"the given responses hold tokens {checkpoint.name} does not have: another tokenizer's?")
    if settings.source_lengths is not None:
        if checkpoint.source == "speech":
            raise InputError("only a text LLM's source can be made another length")
        without = [sample.id for sample in samples if settings.source_lengths.get(sample.id, 0) < 1]
        if without:
            raise InputError(f"source_lengths gives no length for {len(without)} samples (first: {without[0]})")


def _run(
    checkpoint: Checkpoint, captured: Capture, batch: Sequence[Sample], settings: Settings, on_error: str
) -> list[Record]:
    """Runs a batch, in halves where memory runs out."""

    def alone(sample: Sample, error: RuntimeError) -> Record:
        if on_error == "skip":
            return Record({"id": sample.id}, sample.utterance, {}, "does not fit into memory")
        raise InputError(f"sample {sample.id} alone does not fit into memory: shorten it") from error

    return run_in_halves(lambda part: _run_batch(checkpoint, captured, part, settings, on_error), batch, alone)


def _run_batch(
    checkpoint: Checkpoint, captured: Capture, batch: Sequence[Sample], settings: Settings, on_error: str
) -> list[Record]:
    prompts: dict[str, Prompt] = {}
    excluded: dict[str, str] = {}
    for sample in batch:
        try:
            prompts[sample.id] = _encode(checkpoint, sample, settings)
        except InputError as error:
            if on_error == "fail":
                raise
            excluded[sample.id] = str(error)
    embedded = dict(zip(prompts, checkpoint.embed(list(prompts.values())), strict=True))
    responses = _respond(checkpoint, [s for s in batch if s.id in prompts], embedded, settings)
    excluded |= {i: "empty response" for i, response in responses.items() if not response}
    measured = [i for i in prompts if i not in excluded]
    arrays = _measure(
        checkpoint,
        captured,
        [prompts[i] for i in measured],
        [embedded[i] for i in measured],
        [responses[i] for i in measured],
        settings.tokens,
    )
    by_id = dict(zip(measured, arrays, strict=True))
    records = []
    for sample in batch:
        found = by_id.get(sample.id, {})
        reason = excluded.get(sample.id)
        if reason is None and not _has_norms(found["norms"]):
            reason, found = "zero norms", {}
        row: dict[str, Any] = {"id": sample.id, "task": sample.task, "instruction": sample.instruction}
        if sample.id in responses:
            ids = responses[sample.id]
            row |= {"response": checkpoint.decode(ids), "response_ids": ids}
        records.append(Record(row, sample.utterance, found, reason))
    return records


def _encode(checkpoint: Checkpoint, sample: Sample, settings: Settings) -> Prompt:
    source_length = settings.source_lengths[sample.id] if settings.source_lengths is not None else None
    source: Any = read_audio(sample) if checkpoint.source == "speech" else sample.text
    try:
        prompt = checkpoint.encode(sample.instruction, source, source_length=source_length)
        checkpoint.check_length(prompt, _longest_response(checkpoint, sample, settings))
    except InputError as error:
        raise InputError(f"sample {sample.id}: {error}") from error
    return prompt


def _longest_response(checkpoint: Checkpoint, sample: Sample, settings: Settings) -> int:
    if settings.responses is not None:
        return len(settings.responses[sample.id])
    if settings.response == "reference":
        return len(checkpoint.encode_response(sample.target or ""))
    return settings.max_new_tokens


def _respond(
    checkpoint: Checkpoint, samples: Sequence[Sample], embedded: Mapping[str, Tensor], settings: Settings
) -> dict[str, list[int]]:
    if settings.responses is not None:
        return {sample.id: settings.responses[sample.id] for sample in samples}
    if settings.response == "reference":
        return {sample.id: checkpoint.encode_response(sample.target or "") for sample in samples}
    if not samples:
        return {}
    answers = checkpoint.generate([embedded[s.id] for s in samples], max_new_tokens=settings.max_new_tokens)
    return dict(zip((s.id for s in samples), answers, strict=True))


@torch.no_grad()
def _measure(
    checkpoint: Checkpoint,
    captured: Capture,
    prompts: Sequence[Prompt],
    embedded: Sequence[Tensor],
    responses: Sequence[list[int]],
    keep_tokens: bool,
) -> list[dict[str, np.ndarray]]:
    """One teacher-forced pass over prompts and responses, right-padded: the arrays of a [`Record`] for each."""
    if not prompts:
        return []
    llm = checkpoint.llm
    embedding = llm.get_input_embeddings()
    device = embedded[0].device
    inputs = pad_sequence(
        [torch.cat([e, embedding(torch.tensor(r, device=device))]) for e, r in zip(embedded, responses, strict=True)],
        batch_first=True,
    )
    lengths = torch.tensor([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
    mask = (torch.arange(inputs.shape[1]) < lengths[:, None]).to(device)
    rows, row_mask = generating_rows([len(p) for p in prompts], [len(r) for r in responses])
    sums = SegmentSums(prompts, row_mask.to(device), keep_tokens)
    with captured.at_rows(rows.to(device), row_mask.to(device), sums):
        llm(inputs_embeds=inputs, attention_mask=mask.long(), use_cache=False, logits_to_keep=1)
    arrays = sums.by_sample()
    for array, errors in zip(arrays, captured.errors_by_sample(), strict=True):
        array["errors"] = errors.float().numpy()
    return arrays


def generating_rows(prompt_lengths: Sequence[int], response_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The positions whose logits predict the response's tokens: one before each.

    Returns:
        `(rows, row_mask)`, both `[batch, longest response]`. Padding repeats a sample's first row, so that it stays
        a real position, and is False in the mask.
    """
    steps = torch.arange(max(response_lengths))
    row_mask = steps < torch.tensor(response_lengths)[:, None]
    rows = torch.tensor(prompt_lengths)[:, None] - 1 + steps * row_mask
    return rows, row_mask


class SegmentSums:
    """Visitor of [`capture`]: adds up each layer's norm-based attention by segment, on the device.

    Args:
        prompts: the batch's prompts; prompt tokens begin at position 0 (right padding).
        row_mask: `[batch, rows]`, the real generating rows.
        keep_tokens: keep A_j of every prompt token as well.
    """

    def __init__(self, prompts: Sequence[Prompt], row_mask: Tensor, keep_tokens: bool):
        device = row_mask.device
        self.prompts = prompts
        self.keep_tokens = keep_tokens
        self.row_weight = row_mask / row_mask.sum(1, keepdim=True)
        self.segments = pad_sequence([torch.tensor(p.segments) for p in prompts], batch_first=True).to(device)
        self.members = _membership(self.segments)
        self.norms: list[Tensor] = []
        self.head_norms: list[Tensor] = []
        self.token_norms: list[Tensor] = []

    def __call__(self, layer: LayerAttention) -> None:
        keys = self.segments.shape[1]
        a, a_heads = norm_attention(
            layer.alpha[..., :keys],
            layer.value[:, :, :keys],
            layer.metric,
            self.row_weight,
            self.segments != Segment.PADDING,
        )
        members = self.members.to(a.dtype)
        self.norms.append(torch.einsum("bk,bks->bs", a, members))
        self.head_norms.append(torch.einsum("bhk,bks->bhs", a_heads, members))
        if self.keep_tokens:
            self.token_norms.append(a)

    def by_sample(self) -> list[dict[str, np.ndarray]]:
        """The arrays of each sample, layers in order."""
        norms = torch.stack(self.norms, 1).float().cpu().numpy()
        head_norms = torch.stack(self.head_norms, 1).float().cpu().numpy()
        tokens = self.members.sum(1).cpu().numpy()
        arrays = [{"norms": n, "head_norms": h, "tokens": t} for n, h, t in zip(norms, head_norms, tokens, strict=True)]
        if self.keep_tokens:
            token_norms = torch.stack(self.token_norms, 1).float().cpu().numpy()
            for array, scores, prompt in zip(arrays, token_norms, self.prompts, strict=True):
                array["token_norms"] = scores[:, : len(prompt)]
                array["token_ids"] = np.array(prompt.input_ids)
                array["token_segments"] = np.array(prompt.segments)
        return arrays


def _membership(segments: Tensor) -> Tensor:
    """Which of the stored `SEGMENTS` each prompt token counts in: `[batch, keys, 5]`, integers 0 or 1."""
    columns = [segments == Segment[name.upper()] for name in SEGMENTS[:-1]]
    first = torch.zeros_like(columns[0])
    first[:, 0] = segments[:, 0] == Segment.TEMPLATE
    return torch.stack([*columns, first], -1).long()


def _has_norms(norms: np.ndarray) -> bool:
    """Whether instruction and source together received anything in every layer, `norms [layers, segments]`."""
    both = norms[:, SEGMENTS.index("instruction")] + norms[:, SEGMENTS.index("source")]
    return bool(np.isfinite(both).all() and (both > 0).all())


def _collect(
    records: Sequence[Record],
    checkpoint: dict[str, Any],
    data: dict[str, Any],
    conventions: Conventions,
    seed: int,
) -> AttentionResult:
    used = [record for record in records if record.excluded is None]
    excluded: dict[str, list[str]] = {}
    for record in records:
        if record.excluded is not None:
            excluded.setdefault(record.excluded, []).append(record.sample["id"])
    if not used:
        reason, ids = next(iter(excluded.items()))
        raise InputError(f"no sample is left to measure; {len(ids)} of {len(records)} because: {reason}")
    stacked: dict[str, Any] = {
        name: np.stack([r.arrays[name] for r in used]) for name in ("norms", "head_norms", "tokens")
    }
    errors = [torch.from_numpy(record.arrays["errors"]) for record in used]
    return AttentionResult(
        **stacked,
        rows=np.array([record.arrays["errors"].shape[1] for record in used]),
        clusters=np.unique([record.utterance for record in used], return_inverse=True)[1],
        samples=[record.sample for record in used],
        checkpoint=checkpoint,
        data=data,
        conventions=conventions,
        self_check=error_summary(errors, getattr(torch, checkpoint["dtype"])),
        excluded=excluded,
        seed=seed,
        token_scores=_token_scores(used),
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
