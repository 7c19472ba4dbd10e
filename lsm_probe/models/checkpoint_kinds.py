"""The kinds of checkpoints: a text LLM, a large speech-text model of ours, an audio LLM that ships in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.audio_llm import merged_embeddings
from lsm_probe.models.audio_llm_processor import AudioLlmProcessor
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.dates import written_date
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
from lsm_probe.models.processing_lsm import LsmProcessor
from lsm_probe.models.prompts import Prompt, encode_prompt, example_prompt
from lsm_probe.models.segments import Segment
from lsm_probe.models.speech_times import Times, speech_token_times
from lsm_probe.models.templates import PromptTemplate


@dataclass
class TextLlm(Checkpoint):
    """A causal text LLM, which reads the transcript in the source slot."""

    resizes_source: ClassVar[bool] = True

    def encode(
        self, instruction: str, source: str | NDArray[np.float32] | Tensor, *, source_length: int | None = None
    ) -> Prompt:
        assert isinstance(source, str)
        return encode_prompt(self.tokenizer, self.template, instruction, source, source_length=source_length)

    def example_prompt(self) -> Sequence[tuple[int, object]]:
        return example_prompt(self.tokenizer, self.template)


@dataclass
class _SpeechCheckpoint(Checkpoint):
    """A model that takes speech; its processor holds the tokenizer and the template."""

    tokenizer: PreTrainedTokenizerBase = field(init=False)
    template: PromptTemplate = field(init=False)
    processor: LsmProcessor | AudioLlmProcessor = field()
    source: Literal["speech", "text"] = field(default="speech", kw_only=True)

    def __post_init__(self) -> None:
        self.tokenizer, self.template = self.processor.tokenizer, self.processor.template
        super().__post_init__()

    def encode(
        self, instruction: str, source: str | NDArray[np.float32] | Tensor, *, source_length: int | None = None
    ) -> Prompt:
        if isinstance(source, str):
            return self.processor.encode_text(instruction, source)
        if isinstance(source, Tensor):
            return self.processor.encode_with_speech(instruction, source)
        return self.processor.encode(instruction, source)

    def example_prompt(self) -> Sequence[tuple[int, object]]:
        return self.processor.example()


@dataclass
class Lsm(_SpeechCheckpoint):
    """A large speech-text model of ours."""

    model: LsmForConditionalGeneration
    processor: LsmProcessor = field()

    @property
    def llm(self) -> PreTrainedModel:
        return self.model.language_model

    @property
    def connector(self) -> nn.Module:
        return self.model.multi_modal_projector

    def speech_token_times(self, num_samples: int) -> Times:
        return speech_token_times(self.model.config, num_samples)

    def _embed_speech(self, prompt: Prompt, ids: Tensor, features: dict[str, Tensor]) -> Tensor:
        return self.model.embed(ids, **features)[0]


@dataclass
class AudioLlm(_SpeechCheckpoint):
    """An audio LLM as transformers ships it."""

    processor: AudioLlmProcessor = field()

    @property
    def date(self) -> str | None:
        return written_date(self.template, self.processor.processor, self.tokenizer)

    def _embed_speech(self, prompt: Prompt, ids: Tensor, features: dict[str, Tensor]) -> Tensor:
        merged = merged_embeddings(self.model, ids, features)
        if torch.is_grad_enabled():  # `merged` has no graph: embed the words again, as those of any other prompt
            return self._insert_speech(prompt, merged[prompt.positions(Segment.SOURCE)])
        return merged


def require_lsm(checkpoint: Checkpoint, what: str, *, name: str | None = None) -> Lsm:
    """The checkpoint, for what only an LSM of this package can do.

    Args:
        checkpoint: any.
        what: what cannot be done, or what to do instead; ends the error.
        name: how the error calls the checkpoint; its own name by default.

    Raises:
        InputError: it is of another kind.
    """
    if not isinstance(checkpoint, Lsm):
        raise InputError(f"{name or checkpoint.name} is not an LSM of this package: {what}")
    return checkpoint
