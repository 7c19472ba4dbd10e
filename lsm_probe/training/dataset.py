"""From samples to batches: prompts padded left, responses right, labels only on the response."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from lsm_probe.data.audio import read_audio
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sample import Sample, naming
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.connectors import num_speech_tokens
from lsm_probe.models.modeling_lsm import FEATURES
from lsm_probe.models.processing_lsm import pad
from lsm_probe.models.prompts import encode_prompt
from lsm_probe.models.templates import AUDIO_TOKEN
from lsm_probe.training.samples import seconds
from lsm_probe.training.states import SpeechStates

IGNORED = -100
"""The label of a position that is not learned."""


class UnusableSpeech(InputError):
    """An utterance that turns out to be unusable only when it is read.

    A data loader re-raises errors of its worker processes with the traceback as message; the last line is ours.
    """

    def __init__(self, message: str):
        super().__init__(message.splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


class TrainingSet(Dataset[dict[str, Any]]):
    """Samples as token ids and speech. An item depends only on its index, so that a run can resume anywhere.

    Args:
        samples: with `audio` and `target` each.
        checkpoint: the LSM, for its processor and its end-of-response token.
        states: the frozen encoder's states; None encodes in the model at every step.
        on_error: `skip` leaves out unusable samples with a warning.

    Raises:
        InputError: there are no samples, or (with `on_error` "fail") a text holds a control token, a target has no
            tokens, a sound file's header is unusable, or a sample exceeds the LLM's context.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        checkpoint: Lsm,
        states: SpeechStates | None = None,
        on_error: OnError = "fail",
    ):
        self.processor = checkpoint.processor
        self.projector = checkpoint.model.config.projector_config
        self.states = states
        self.samples: list[Sample] = []
        self.responses: list[NDArray[np.int32]] = []
        self.lengths = self._read(samples, checkpoint, on_error)
        if not self.samples:
            raise InputError("no usable sample is left: the messages above say why each was left out")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`prompt` and `response` as token ids, `index`, and the speech: `speech_states`, one `[states, encoder_dim]`
        for each piece, or the model's `FEATURES` as the processor makes them.

        Raises:
            UnusableSpeech: the sound or its states are damaged.
        """
        sample = self.samples[index]
        item = {"index": index, "response": self.responses[index].tolist()}
        try:
            return item | (
                self._with_features(sample) if self.states is None else self._with_states(sample, self.states)
            )
        except InputError as error:
            raise UnusableSpeech(str(error)) from error

    def _with_features(self, sample: Sample) -> dict[str, Any]:
        prompt = self.processor.encode(sample.instruction, read_audio(sample))
        return {"prompt": prompt.input_ids, **prompt.features}

    def _with_states(self, sample: Sample, states: SpeechStates) -> dict[str, Any]:
        pieces = states.read(sample)
        tokens = sum(num_speech_tokens(self.projector, len(piece)) for piece in pieces)
        return {"prompt": self._prompt_ids(sample.instruction, tokens), "speech_states": pieces}

    def _prompt_ids(self, instruction: str, speech_tokens: int) -> list[int]:
        return encode_prompt(
            self.processor.tokenizer,
            self.processor.template,
            instruction,
            AUDIO_TOKEN,
            source_length=speech_tokens,
            audio_token_id=self.processor.audio_token_id,
        ).input_ids

    def _response(self, checkpoint: Lsm, sample: Sample, speech_tokens: int) -> list[int]:
        """The training target for a sample, as token ids; its speech becomes `speech_tokens` tokens."""
        return checkpoint.encode_response(sample.target or "")

    def _read(self, samples: Sequence[Sample], checkpoint: Lsm, on_error: OnError) -> NDArray[np.int32]:
        """Keeps the usable samples with their responses; returns the number of tokens of each."""
        prompt_length = cache(lambda instruction: len(self._prompt_ids(instruction, 0)))  # the same for many samples
        lengths, problems = [], Problems()
        for sample in samples:
            with problems.catching(), naming(sample):
                speech = self._count_speech_tokens(sample)
                response = self._response(checkpoint, sample, speech)
                if not response:
                    raise InputError(f"the target {sample.target!r} has no tokens")
                length = prompt_length(sample.instruction) + speech + len(response)
                limit = checkpoint.context_length
                if limit is not None and length > limit:
                    raise InputError(f"its {length} tokens exceed the LLM's context of {limit}; shorten it")
                self.samples.append(sample)
                self.responses.append(np.array(response, dtype=np.int32))
                lengths.append(length)
        problems.settle(on_error)
        return np.array(lengths, dtype=np.int32)

    def _count_speech_tokens(self, sample: Sample) -> int:
        """Speech tokens of a sample, from the duration in its sound file's header."""
        assert sample.audio is not None
        duration = seconds(sample.audio, sample.start, sample.duration)
        return self.processor.count_speech_tokens(round(duration * self.processor.feature_extractor.sampling_rate))


def collate(items: Sequence[dict[str, Any]], *, pad_id: int) -> dict[str, Any]:
    """Makes a batch in which padding has no influence.

    Prompts are padded left and responses right, so that in every row the response begins in the same column. The LLM's
    head runs only on those columns (`logits_to_keep`).

    Returns:
        `input_ids` and `attention_mask` `[batch, prompt + response]`; `labels` of the same shape and `shift_labels`
        `[batch, response]`, the labels of the columns that predict them, both -100 where there is no label;
        `logits_to_keep` `[response]`, those columns; `index`, a list, which stays on the CPU; and the speech.
    """
    prompts, responses = [item["prompt"] for item in items], [item["response"] for item in items]
    start = max(map(len, prompts))
    longest = max(map(len, responses))
    shift_labels = pad(responses, IGNORED, "right")
    batch = {
        "input_ids": torch.cat([pad(prompts, pad_id, "left"), pad(responses, pad_id, "right")], dim=1),
        "attention_mask": torch.cat(
            [pad([[1] * len(p) for p in prompts], 0, "left"), pad([[1] * len(r) for r in responses], 0, "right")], dim=1
        ),
        "labels": torch.cat([torch.full((len(items), start), IGNORED), shift_labels], dim=1),
        "shift_labels": shift_labels,
        "logits_to_keep": torch.arange(start - 1, start - 1 + longest),
        "index": [item["index"] for item in items],
    }
    return batch | _speech(items)


def _speech(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    if "speech_states" not in items[0]:
        return {key: torch.cat([item[key] for item in items]) for key in FEATURES if key in items[0]}
    pieces = [piece for item in items for piece in item["speech_states"]]
    return {
        "speech_states": pad_sequence(pieces, batch_first=True),
        "speech_lengths": torch.tensor([len(piece) for piece in pieces]),
    }
