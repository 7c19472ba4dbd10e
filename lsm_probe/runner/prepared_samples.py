"""What probes measure: a sample, the prompt it becomes, and the response in question."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, get_args

from torch import Tensor

from lsm_probe.data.audio import read_audio
from lsm_probe.data.manifest import fingerprint
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt
from lsm_probe.models.thinking import UNFINISHED, ResponsePart, Thought

MAX_NEW_TOKENS = 128
EMPTY, NO_THINKING = "empty response", "no thinking"
_KEYS = {"speech": "audio", "text": "text"}
"""What samples must have for a source."""


@dataclass(frozen=True)
class ResponseSource:
    """Whose responses are measured, and to which prompts.

    Attributes:
        response: `generated` (greedily, by the checkpoint itself), `reference` (the sample's target), or `none` for
            a probe that looks at prompts alone.
        max_new_tokens: longest generated response.
        responses: response token ids by sample id, taken instead of generating.
        source_lengths: source tokens by sample id, for a length-matched text control.
        part: which tokens of a reasoning model's responses are measured; the response is always run as a whole.
    """

    response: Literal["generated", "reference", "none"] = "generated"
    max_new_tokens: int = MAX_NEW_TOKENS
    responses: Mapping[str, list[int]] | None = None
    source_lengths: Mapping[str, int] | None = None
    part: ResponsePart = "all"

    def __post_init__(self) -> None:
        if self.part not in get_args(ResponsePart):
            allowed = ", ".join(get_args(ResponsePart))
            raise InputError(f"--response-part {self.part!r} is unknown; choose one of: {allowed}")


@dataclass
class PreparedSample:
    """A sample ready to be measured.

    Attributes:
        sample: where it comes from.
        prompt: its tokens and their segments.
        checkpoint: whose prompt it is.
        response: token ids of the response in question; empty for a probe that looks at prompts alone.
        source: what stands in its source slot: a waveform `[samples]` at 16 kHz, or a transcript.
        seconds: wall time from reading the source to the end of the response; an equal part of its batch's.
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
        """The thinking that the response begins with; asked for once the response is there."""
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
        """The prompt as the LLM reads it, `[tokens, llm_dim]`; made when first asked for, without gradients."""
        return self.checkpoint.embed([self.prompt])[0]


def read_responses(folder: Path) -> dict[str, list[int]]:
    """The responses that a result of any probe was measured on: token ids by sample id.

    Raises:
        InputError: if the folder holds no result with responses.
    """
    try:
        lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        return {row["id"]: [int(token) for token in row["response_ids"]] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} holds no readable result with responses: {reason}") from error


def describe_data(samples: Sequence[Sample], name: str = "samples") -> dict[str, Any]:
    """What a result stores about its data: name, sha256 of what goes into prompts and targets, number of samples."""
    return {"name": name, "sha256": fingerprint(samples), "n_samples": len(samples)}


def describe_checkpoint(checkpoint: Checkpoint, answers: ResponseSource) -> dict[str, Any]:
    """What a result stores about its checkpoint and the responses it was measured on."""
    generating = {} if answers.response == "none" else {"max_new_tokens": answers.max_new_tokens}
    return {
        "name": checkpoint.name,
        "source": checkpoint.source,
        "template": checkpoint.template,
        "dtype": str(checkpoint.llm.dtype).removeprefix("torch."),
        **generating,
        **({} if answers.responses is None else {"responses": "given"}),
        **({} if answers.part == "all" else {"response_part": answers.part}),
        **({} if answers.source_lengths is None else {"control": "transcript repeated or cut to given lengths"}),
        **checkpoint.identity.to_dict(),
    }


def check_samples(
    checkpoint: Checkpoint, samples: Sequence[Sample], answers: ResponseSource, needs: Sequence[str] = ()
) -> None:
    """Refuses at once what would otherwise fail hours into a run.

    Args:
        needs: keys that samples must have beside those that prompt and response come from.

    Raises:
        InputError: there are no samples, two of one id, some lack a key, or what was given by id does not fit.
    """
    if not samples:
        raise InputError("there are no samples to probe: the manifest, or what --limit leaves of it, is empty")
    if len({sample.id for sample in samples}) < len(samples):
        raise InputError("two samples have the same id: ids must differ")
    needed = {_KEYS[checkpoint.source], *needs}
    if answers.response == "reference" and answers.responses is None:
        needed.add("target")
    for key in sorted(needed):
        _check_key(key, checkpoint.name, samples)
    with_context = [sample.id for sample in samples if sample.context is not None]
    if with_context:
        raise InputError(
            f"{len(with_context)} samples carry a `context` (first: {with_context[0]}), which the probes do not put "
            "into the prompt: write it into the instruction, or leave it out"
        )
    if answers.responses is not None:
        _check_responses(checkpoint, samples, answers.responses)
    if answers.source_lengths is not None:
        if checkpoint.processor is not None:
            raise InputError("only a text LLM's source can be made another length")
        without = [sample.id for sample in samples if answers.source_lengths.get(sample.id, 0) < 1]
        if without:
            raise InputError(f"source_lengths gives no length for {len(without)} samples (first: {without[0]})")


def check_source(name: str, source: Literal["speech", "text"], samples: Sequence[Sample]) -> None:
    """Refuses samples without what the checkpoint of this name reads; for what is not loaded yet.

    Raises:
        InputError: samples have no `audio`, or no `text`.
    """
    _check_key(_KEYS[source], name, samples)


def _check_key(key: str, name: str, samples: Sequence[Sample]) -> None:
    without = [sample.id for sample in samples if getattr(sample, key) is None]
    if without:
        mend = "add it to the manifest" + (", or take --response generated" if key == "target" else "")
        raise InputError(
            f"{len(without)} of {len(samples)} samples have no `{key}`, which {name} needs here "
            f"(first: {without[0]}): {mend}"
        )


def _check_responses(checkpoint: Checkpoint, samples: Sequence[Sample], responses: Mapping[str, list[int]]) -> None:
    without = [sample.id for sample in samples if sample.id not in responses]
    if without:
        raise InputError(f"the given responses hold none for {len(without)} samples (first: {without[0]})")
    vocabulary: int = checkpoint.llm.config.get_text_config().vocab_size
    if any(not 0 <= token < vocabulary for sample in samples for token in responses[sample.id]):
        raise InputError(f"the given responses hold tokens {checkpoint.name} does not have: another tokenizer's?")


def prepare(
    checkpoint: Checkpoint, batch: Sequence[Sample], answers: ResponseSource, on_error: str
) -> tuple[list[PreparedSample], dict[str, str]]:
    """Encodes and answers a batch.

    Returns:
        The items, an empty response included, and the reason of each sample id that was left out.

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
    heard = checkpoint.preprocess_audio([source for _, source in read], [sample.language for sample, _ in read])
    items: list[PreparedSample] = []
    for (sample, _), source in zip(read, heard, strict=True):
        with using(sample):
            prompt = _encode(checkpoint, sample, source, answers)
            items.append(PreparedSample(sample, prompt, checkpoint, source=source, part=answers.part))
    responses = _respond(checkpoint, items, answers)
    seconds = (perf_counter() - begun) / max(1, len(items))
    for item, response in zip(items, responses, strict=True):
        item.response, item.seconds = response, seconds
    return items, left_out


def read_source(checkpoint: Checkpoint, sample: Sample) -> Any:
    """What stands in a sample's source slot: its waveform `[samples]` at 16 kHz, or its transcript."""
    return read_audio(sample) if checkpoint.source == "speech" else sample.text


def _encode(checkpoint: Checkpoint, sample: Sample, source: Any, answers: ResponseSource) -> Prompt:
    source_length = answers.source_lengths[sample.id] if answers.source_lengths is not None else None
    prompt = checkpoint.encode(sample.instruction, source, source_length=source_length)
    checkpoint.check_length(prompt, _longest_response(checkpoint, sample, answers))
    return prompt


def _longest_response(checkpoint: Checkpoint, sample: Sample, answers: ResponseSource) -> int:
    if answers.responses is not None:
        return len(answers.responses[sample.id])
    if answers.response == "none":
        return 0
    if answers.response == "reference":
        return len(checkpoint.encode_response(sample.target or ""))
    return answers.max_new_tokens


def _respond(checkpoint: Checkpoint, items: Sequence[PreparedSample], answers: ResponseSource) -> list[list[int]]:
    if answers.responses is not None:
        return [answers.responses[item.sample.id] for item in items]
    if answers.response == "none" or not items:
        return [[] for _ in items]
    if answers.response == "reference":
        return [checkpoint.encode_response(item.sample.target or "") for item in items]
    return checkpoint.generate([s.embedded for s in items], max_new_tokens=answers.max_new_tokens)
