"""Prepared samples: the input of a measurement for each sample, with its prompt and the measured response."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lsm_probe.data.audio import read_audio
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt, require_instruction
from lsm_probe.models.quantisation import find_quantised
from lsm_probe.models.thinking import UNFINISHED, Thought
from lsm_probe.runner.exclusions import EMPTY, NO_THINKING
from lsm_probe.runner.identity import CheckpointIdentity, Control
from lsm_probe.runner.options import OnError, ResponseOptions, ResponsePart
from lsm_probe.runner.sample_keys import SOURCE_KEYS, check_key


@dataclass
class PreparedSample:
    """A sample ready to be measured.

    Attributes:
        sample: the original sample.
        prompt: its tokens and their segments.
        checkpoint: the checkpoint that the prompt is for.
        response: token ids of the response; empty for a measurement of prompts alone.
        source: the content of its source slot: a waveform `[samples]` at 16 kHz, or a transcript.
        seconds: wall time from reading the source to the end of the response; the batch's time divided by its size.
        part: which tokens of the response are measured.
    """

    sample: Sample
    prompt: Prompt
    checkpoint: Checkpoint = field(repr=False)
    response: list[int] = field(default_factory=list)
    source: Any = field(default=None, repr=False)
    seconds: float = 0.0
    part: ResponsePart = "all"

    @cached_property
    def thought(self) -> Thought | None:
        """The thinking at the start of the response; available once the response is set."""
        return self.checkpoint.find_thought(self.prompt, self.response)

    @property
    def measured(self) -> slice:
        """The tokens of the response that are measured."""
        thinking = self.thought.tokens if self.thought else 0
        stop = thinking if self.part == "thinking" else len(self.response)
        return slice(thinking if self.part == "answer" else 0, stop)

    @property
    def reason_unmeasured(self) -> str | None:
        """Why no token of the response is measured, or None."""
        if not self.response:
            return EMPTY
        if self.measured.start < self.measured.stop:
            return None
        return NO_THINKING if self.part == "thinking" else UNFINISHED

    @cached_property
    def embedded(self) -> Tensor:
        """The prompt as input embeddings, `[tokens, llm_dim]`; computed at first use, without gradients."""
        return self.checkpoint.embed([self.prompt])[0]


def read_responses(folder: Path) -> dict[str, list[int]]:
    """The responses that a result of any probe was measured on: token ids by sample id.

    Raises:
        InputError: the folder holds no result with responses.
    """
    try:
        lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        return {row["id"]: [int(token) for token in row["response_ids"]] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} holds no readable result with responses: {reason}") from error


def describe_checkpoint(
    checkpoint: Checkpoint, responses: ResponseOptions | None, control: Control | None = None
) -> CheckpointIdentity:
    """What a result stores about its checkpoint and the responses it was measured on.

    Args:
        checkpoint: the measured checkpoint.
        responses: options of the responses; None for a measurement of prompts alone.
        control: set if the checkpoint is measured as a length-matched control.
    """
    return CheckpointIdentity(
        name=checkpoint.name if control is None else control.name,
        source=checkpoint.source,
        template=checkpoint.template.name,
        dtype=str(checkpoint.llm.dtype).removeprefix("torch."),
        quantised=None if (found := find_quantised(checkpoint.model)) is None else found[1],
        max_new_tokens=responses.max_new_tokens if responses else None,
        responses="given" if responses and responses.responses is not None else None,
        response_part=responses.response_part if responses and responses.response_part != "all" else None,
        control=control,
        cascade_of=checkpoint.cascade_of,
        model=checkpoint.identity,
    )


def check_samples(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    responses: ResponseOptions | None,
    *,
    source_lengths: Mapping[str, int] | None = None,
    needs: Sequence[str] = (),
) -> None:
    """Refuse problems at the start that would otherwise stop a run after hours.

    Args:
        checkpoint: the checkpoint to measure.
        samples: the samples to measure it on.
        responses: options of the responses; None for prompts alone.
        source_lengths: number of source tokens by sample id, for a length-matched control.
        needs: keys that samples must have in addition to those for prompt and response.

    Raises:
        InputError: there are no samples, two have the same id, some lack a key, values given by id do not fit, or the
            checkpoint's template has no instruction.
    """
    require_instruction(checkpoint.template)
    if not samples:
        raise InputError("there are no samples to probe: the manifest, or what --limit leaves of it, is empty")
    ids = [sample.id for sample in samples]
    if len(set(ids)) < len(ids):
        twice = next(sample for i, sample in enumerate(ids) if sample in ids[:i])
        raise InputError(f"two samples have the same id {twice}: give each its own")
    needed = {SOURCE_KEYS[checkpoint.source], *needs}
    if responses and responses.response == "reference" and responses.responses is None:
        needed.add("target")
    for key in sorted(needed):
        check_key(key, checkpoint.name, samples)
    with_context = [sample.id for sample in samples if sample.context is not None]
    if with_context:
        raise InputError(
            f"{len(with_context)} samples carry a `context` (first: {with_context[0]}), which the probes do not put "
            "into the prompt: write it into the instruction, or leave it out"
        )
    if responses and (given := responses.responses) is not None:
        without = [sample.id for sample in samples if sample.id not in given]
        if without:
            raise InputError(
                f"the given responses hold none for {len(without)} samples (first: {without[0]}): give those of a run "
                "on the same samples"
            )
        vocabulary: int = checkpoint.llm.config.get_text_config().vocab_size
        beyond = [sample.id for sample in samples if any(not 0 <= token < vocabulary for token in given[sample.id])]
        if beyond:
            raise InputError(
                f"the given response of sample {beyond[0]} holds tokens outside the vocabulary of {checkpoint.name} "
                f"({vocabulary} tokens): give responses of a model with the same tokenizer"
            )
    if source_lengths is not None:
        if not checkpoint.resizes_source:
            raise InputError("source_lengths can only be given for a text LLM")
        without = [sample.id for sample in samples if source_lengths.get(sample.id, 0) < 1]
        if without:
            raise InputError(f"source_lengths gives no length for {len(without)} samples (first: {without[0]})")


def prepare(
    checkpoint: Checkpoint,
    batch: Sequence[Sample],
    responses: ResponseOptions | None,
    on_error: OnError,
    source_lengths: Mapping[str, int] | None = None,
) -> tuple[list[PreparedSample], dict[str, str]]:
    """Encode the prompts of a batch and get its responses.

    Args:
        checkpoint: encodes the prompts and generates the responses.
        batch: samples.
        responses: options of the responses; None for prompts alone.
        on_error: `skip` leaves out samples that cannot be used.
        source_lengths: number of source tokens by sample id, for a length-matched control.

    Returns:
        The prepared samples, including those with an empty response, and the reason for each omitted sample id.

    Raises:
        InputError: a sample cannot be used, under `on_error="fail"`.
    """
    begun = perf_counter()
    left_out: dict[str, str] = {}

    @contextmanager
    def using(sample: Sample) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if on_error == "fail":
                raise InputError(f"sample {sample.id}: {error}") from error
            left_out[sample.id] = str(error)

    read: list[tuple[Sample, Any]] = []
    for sample in batch:
        with using(sample):
            read.append((sample, read_source(checkpoint, sample)))
    sources = checkpoint.preprocess_audio([source for _, source in read], [sample.language for sample, _ in read])
    part, longest = (responses.response_part, responses.max_new_tokens) if responses else ("all", 0)
    items: list[PreparedSample] = []
    to_generate: list[PreparedSample] = []
    for (sample, _), source in zip(read, sources, strict=True):
        with using(sample):
            length = None if source_lengths is None else source_lengths[sample.id]
            prompt = checkpoint.encode(sample.instruction, source, source_length=length)
            response = _known_response(checkpoint, sample, responses)
            checkpoint.check_length(prompt, longest if response is None else len(response))
            items.append(PreparedSample(sample, prompt, checkpoint, response or [], source, part=part))
            if response is None:
                to_generate.append(items[-1])
    if to_generate:
        found = checkpoint.generate([item.embedded for item in to_generate], max_new_tokens=longest)
        for item, generated in zip(to_generate, found, strict=True):
            item.response = generated
    seconds = (perf_counter() - begun) / max(1, len(items))
    for item in items:
        item.seconds = seconds
    return items, left_out


def teacher_forced_inputs(items: Sequence[PreparedSample], embedded: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The LLM's input for prompts followed by their responses, right-padded.

    Args:
        items: the samples with their responses.
        embedded: the prompts as input embeddings, `[tokens, llm_dim]` each.

    Returns:
        `(inputs, mask)`: `[batch, longest, llm_dim]`, and 1 where a token is real, `[batch, longest]`, int64.
    """
    embedding, device = items[0].checkpoint.llm.get_input_embeddings(), embedded[0].device
    responses = [embedding(torch.tensor(item.response, dtype=torch.long, device=device)) for item in items]
    rows = [torch.cat(pair) for pair in zip(embedded, responses, strict=True)]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True), mask.to(device)


def read_source(checkpoint: Checkpoint, sample: Sample) -> Any:
    """What stands in a sample's source slot: its waveform `[samples]` at 16 kHz, or its transcript."""
    return read_audio(sample) if checkpoint.source == "speech" else sample.text


def _known_response(checkpoint: Checkpoint, sample: Sample, responses: ResponseOptions | None) -> list[int] | None:
    """A response that is already known, else None."""
    if responses is None:
        return []
    if responses.responses is not None:
        return responses.responses[sample.id]
    if responses.response == "generated":
        return (responses.generated or {}).get(sample.id)
    return checkpoint.encode_response(sample.target or "")
