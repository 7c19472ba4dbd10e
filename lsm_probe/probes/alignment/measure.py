"""Alignment: does the LLM represent speech as it represents the words of that speech?

Each sample goes through the LLM twice under the same instruction: once with its speech in the source slot, once with
its transcript. The hidden states of a segment are averaged to one vector per pass and layer. The result measures how
similar the two sets of vectors are. Figure 6 of arXiv 2410.03798 compares such sets only visually, by t-SNE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from lsm_probe.data.manifest import describe_data
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError, NotMeasurable
from lsm_probe.instruments.similarity import check_perplexity
from lsm_probe.intervals import number_clusters
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt
from lsm_probe.models.segments import Segment
from lsm_probe.probes.alignment.result import AlignmentConventions, AlignmentResult
from lsm_probe.runner.measurement_run import Measured, MeasurementRun, Unusable, stack
from lsm_probe.runner.options import MeasureKeywords, split_options
from lsm_probe.runner.prepared_samples import PreparedSample, teacher_forced_inputs

PERPLEXITY = 30.0
UTTERANCES = 5
"""Minimum number of utterances: the interval of CKA leaves out one, and CKA needs four."""


def alignment(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    segment: Literal["source", "prompt", "response"] = "source",
    instruction: str | None = None,
    layers: Sequence[int] | None = None,
    perplexity: float = PERPLEXITY,
    plot_layer: int = -1,
    **options: Unpack[MeasureKeywords],
) -> AlignmentResult:
    """Measure how similar an LSM's hidden states are for speech and for its transcript, by layer.

    State 0 is the input of the first layer, state l the output of layer l. The last state is taken after the final norm
    (transformers' `hidden_states`). A vector is the mean over the segment's positions, in float32.

    Args:
        checkpoint: an LSM, as [`lsm_probe.load`] returns it.
        samples: with `audio` and `text`; with `target` for `response="reference"`.
        segment: which positions are averaged: the `source` (the speech tokens, or the transcript's tokens), the whole
            `prompt`, most of which is the same in both passes, or the tokens of the `response`, which has the same
            token ids in both passes. Tokens that both passes share are similar even without any alignment, so compare
            `prompt` and `response` with those of `builtin:untrained`.
        instruction: replaces the instruction of every sample. If samples have different instructions, they differ in
            the same way in both passes, which raises all numbers except the distances: a miniature LSM had a
            standardised cosine of 0.10 after its last layer with four wordings of one task, and 0.005 with one wording.
        layers: numbers of the states to keep; all by default. All states of 1,000 samples take 1 GB for a 7B model.
        perplexity: of the t-SNE; affects no other number.
        plot_layer: the state that the result plots by default.
        options: options that all measurements share; see [`ResponseOptions`] and [`RunOptions`].

    Raises:
        InputError: the checkpoint is a text LLM, there are too few samples for `perplexity` or fewer than 5
            utterances, a state is unknown, the response part is unknown or given without `segment="response"`, a sample
            cannot be used (under `on_error="fail"`), or states are not finite.
    """
    responses, run = split_options(options)
    conventions = AlignmentConventions(segment, responses.response if segment == "response" else "none")
    if checkpoint.source != "speech":
        raise InputError(
            f"{checkpoint.name} is a text LLM, and alignment compares speech with text inside one model: give an LSM"
        )
    if responses.response != "generated" and segment != "response":
        raise InputError(f"segment {segment!r} needs no responses: leave out --response, or take --segment response")
    if responses.responses is not None and segment != "response":
        raise InputError(f"segment {segment!r} needs no responses: leave out --responses, or take --segment response")
    if responses.response_part != "all" and segment != "response":
        raise InputError(
            f"segment {segment!r} is not a response: leave out --response-part, or take --segment response"
        )
    kept = state_numbers(checkpoint, layers)
    if plot_layer != -1:  # checked before the measurement, not when the figure is drawn
        state_numbers(checkpoint, [plot_layer])
    if instruction is not None:
        samples = with_instruction(samples, instruction)
        name = (run.data or describe_data(samples)).name
        run = replace(run, data=replace(describe_data(samples, name), instruction=instruction))
    measurement = MeasurementRun(
        checkpoint=checkpoint,
        samples=samples,
        responses=responses if segment == "response" else None,
        options=run,
        settings={"segment": segment, "layers": kept},
        needs=("audio", "text"),
    )
    _check_enough(samples, perplexity)
    records, common = measurement.run(_Reader(checkpoint, segment, kept))
    measured = {sample["id"] for sample in common["samples"]}
    used = [sample for sample in samples if sample.id in measured]
    _check_enough(used, perplexity, left_out=len(samples) - len(used))
    return AlignmentResult(
        **common | {"clusters": utterances(used)},
        **stack(records, "speech", "text"),
        conventions=conventions,
        layers=kept,
        perplexity=perplexity,
        plot_layer=plot_layer,
    )


def state_numbers(checkpoint: Checkpoint, layers: Sequence[int] | None = None) -> list[int]:
    """The chosen states in ascending order; all of them by default: one more than the LLM has layers.

    Raises:
        InputError: a number is not a state of this model, or none is chosen.
    """
    last = checkpoint.llm.config.get_text_config().num_hidden_layers
    if layers is None:
        return list(range(last + 1))
    unknown = [layer for layer in layers if not 0 <= layer <= last]
    if unknown or not layers:
        what = f"has no state {unknown[0]}" if unknown else "needs a state to look at"
        raise InputError(f"{checkpoint.name} {what}: choose from 0 (embeddings) to {last} (after the last layer)")
    return sorted({int(layer) for layer in layers})


def with_instruction(samples: Sequence[Sample], instruction: str) -> list[Sample]:
    """The same samples under another instruction.

    Raises:
        InputError: the instruction is blank or no Unicode text.
    """
    try:
        return [Sample.model_validate({**sample.model_dump(), "instruction": instruction}) for sample in samples]
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"the instruction {instruction!r} cannot be used: it {reason}") from error


def utterances(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Index of the utterance of each sample, `[samples]`; recordings of the same words count as one utterance.

    Their transcripts give the same vectors. As separate utterances, a correct match would count as a miss, and the
    intervals would count one sentence several times.
    """
    words: dict[str, str] = {}
    for sample in samples:
        words.setdefault(sample.utterance, (sample.text or "").strip())
    return number_clusters([words[sample.utterance] for sample in samples])


def _check_enough(samples: Sequence[Sample], perplexity: float, left_out: int = 0) -> None:
    """Raises NotMeasurable if there are too few samples for a number or the figure."""
    after = f"{left_out} of {left_out + len(samples)} samples had to be left out, and " if left_out else ""
    different = len(set(utterances(samples).tolist()))
    if different < UTTERANCES:
        raise NotMeasurable(
            f"{after}alignment needs at least {UTTERANCES} utterances of different words, got {different}: "
            "give more samples"
        )
    try:
        check_perplexity(perplexity, len(samples))
    except InputError as error:
        raise NotMeasurable(f"{after}{error}") from error


@dataclass(frozen=True)
class _Reader:
    """Computes the vectors of each item in a batch: `speech` and `text`, `[states, llm_dim]` float32."""

    checkpoint: Checkpoint
    segment: str
    layers: Sequence[int]

    def __call__(self, items: Sequence[PreparedSample]) -> list[Measured]:
        prompts: dict[str, Prompt] = {}
        measured: dict[str, Measured] = {}
        for item in items:
            try:
                prompts[item.sample.id] = self._with_transcript(item)
            except InputError as error:
                measured[item.sample.id] = Unusable(str(error), fault=True)
        usable = [item for item in items if item.sample.id in prompts]
        if usable:
            speech = self._means(usable, [item.embedded for item in usable], [item.prompt for item in usable])
            text = self._means(usable, self.checkpoint.embed(list(prompts.values())), list(prompts.values()))
            measured |= {item.sample.id: self._pair(*both) for item, *both in zip(usable, speech, text, strict=True)}
        return [measured[item.sample.id] for item in items]

    def _with_transcript(self, item: PreparedSample) -> Prompt:
        """The item's prompt with its transcript in place of the speech."""
        assert item.sample.text is not None  # MeasurementRun has checked it
        prompt = self.checkpoint.encode(item.sample.instruction, item.sample.text)
        self.checkpoint.check_length(prompt, len(item.response))
        return prompt

    def _pair(self, speech: NDArray[np.float32], text: NDArray[np.float32]) -> Measured:
        for name, vectors in (("speech", speech), ("transcript", text)):
            bad = np.flatnonzero(~np.isfinite(vectors).all(1))
            if len(bad):
                return Unusable(
                    f"state {self.layers[bad[0]]} of its {name} is not finite (the first that is not): the weights "
                    "hold NaN, or the dtype overflows (try --dtype float32 or bfloat16)",
                    fault=True,
                )
        return {"speech": speech, "text": text}

    @torch.no_grad()
    def _means(
        self, items: Sequence[PreparedSample], embedded: Sequence[Tensor], prompts: Sequence[Prompt]
    ) -> list[NDArray[np.float32]]:
        """One teacher-forced pass, right-padded: the mean over the segment for each prompt, `[states, llm_dim]`."""
        llm: Any = self.checkpoint.llm
        inputs, mask = teacher_forced_inputs(items, embedded)
        states = llm(
            inputs_embeds=inputs, attention_mask=mask, use_cache=False, logits_to_keep=1, output_hidden_states=True
        ).hidden_states
        chosen = [self._positions(item, prompt) for item, prompt in zip(items, prompts, strict=True)]
        means = _means_of_rows([states[layer] for layer in self.layers], chosen)
        return list(means.cpu().numpy())  # one copy per batch, because each copy waits for the device

    def _positions(self, item: PreparedSample, prompt: Prompt) -> list[int]:
        if self.segment == "source":
            return prompt.positions(Segment.SOURCE)
        if self.segment == "prompt":
            return list(range(len(prompt)))
        return list(range(len(prompt), len(prompt) + len(item.response))[item.measured])


def _means_of_rows(states: Sequence[Tensor], chosen: Sequence[list[int]]) -> Tensor:
    """Means over the chosen positions of each row, `[rows, states, llm_dim]` float32, on the first state's device.

    Args:
        states: `[rows, positions, llm_dim]` each; they may be on different devices if the model is on several.
        chosen: positions of each row.
    """
    flat = torch.tensor([position for positions in chosen for position in positions])
    positions = {device: flat.to(device).split(list(map(len, chosen))) for device in {s.device for s in states}}
    means = [
        torch.stack([row[own].float().mean(0) for row, own in zip(state, positions[state.device], strict=True)])
        for state in states
    ]
    return torch.stack([mean.to(states[0].device) for mean in means], dim=1)
