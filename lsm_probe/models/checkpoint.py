"""A loaded model with everything that is needed to prompt it, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lsm_probe.checksums import write_checksums
from lsm_probe.errors import InputError
from lsm_probe.files import new_folder
from lsm_probe.hardware import exact_float32
from lsm_probe.models.audio_llm_processor import AudioLlmProcessor
from lsm_probe.models.dates import written_date
from lsm_probe.models.devices import input_device
from lsm_probe.models.generation import generate_greedily
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.processing_lsm import LsmProcessor
from lsm_probe.models.prompts import Prompt, encode_target
from lsm_probe.models.rotary import separate_rows
from lsm_probe.models.saved_tokenizer import keep_tokenizer
from lsm_probe.models.segments import Segment
from lsm_probe.models.sparse_attention import find_exact_length
from lsm_probe.models.speech_cache import SpeechCache
from lsm_probe.models.speech_times import Times
from lsm_probe.models.templates import PromptTemplate, find_template
from lsm_probe.models.thinking import Thought, find_thought, text_after_user


class ReadableSample(Protocol):
    """A sample: an instruction, and speech or a transcript."""

    @property
    def instruction(self) -> str: ...

    def read_source(self, source: Literal["speech", "text"]) -> NDArray[np.float32] | str: ...


@dataclass
class Checkpoint(ABC):
    """The interface that all kinds of checkpoints share; [`load`] lists the kinds.

    Attributes:
        name: the user's name for it.
        model: the LSM, the audio LLM, or the text LLM itself.
        tokenizer: the LLM's fast tokenizer.
        template: the prompt template; its name is also accepted.
        processor: writes the prompts of a model that takes speech; None for a text LLM.
        identity: origin of the weights and their hashes; stored with every result.
        source: the content of the source slot in its prompts. A model that takes speech reads transcripts under `text`.
        cascade_of: names of the recogniser and the text LLM, for a cascade of both.
        resizes_source: whether [`encode`] can repeat or cut the source to a given number of tokens.
    """

    resizes_source: ClassVar[bool] = False

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    processor: LsmProcessor | AudioLlmProcessor | None = field(init=False, default=None)
    identity: ModelIdentity = field(default_factory=ModelIdentity, kw_only=True)
    source: Literal["speech", "text"] = field(default="text", kw_only=True)
    cascade_of: tuple[str, str] | None = field(default=None, kw_only=True)
    _speech: SpeechCache | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.template = find_template(self.template)
        separate_rows(self.llm)

    @abstractmethod
    def encode(
        self, instruction: str, source: str | NDArray[np.float32] | Tensor, *, source_length: int | None = None
    ) -> Prompt:
        """Tokenises one prompt, each token with its segment.

        Args:
            instruction: the instruction for the model.
            source: the transcript; for a model that takes speech also the waveform (mono, 16 kHz), or the output of
                [`encode_speech`].
            source_length: for a text LLM, repeat or cut the transcript to this many tokens (length-matched control).

        Raises:
            InputError: instruction or source tokenise to nothing, or contain a control token.
        """

    @abstractmethod
    def example_prompt(self) -> Sequence[tuple[int, object]]:
        """A prompt with fixed words in place of instruction and source, cut into segments."""

    @property
    def llm(self) -> PreTrainedModel:
        """The model that reads embeddings and responds: the causal LM inside an LSM, or the model itself.

        An audio LLM of another kind is not taken apart. Given embeddings, it acts as its inner LLM, including its own
        changes to the logits.
        """
        return self.model

    @property
    def connector(self) -> nn.Module | None:
        """The module that turns encoder states into speech tokens, in an LSM of this package."""
        return None

    def speech_token_times(self, num_samples: int) -> Times | None:
        """Begin and end of the speech that each speech token covers, `[speech tokens, 2]`, seconds; None if unknown.

        Args:
            num_samples: of the utterance at 16 kHz.

        Raises:
            InputError: the tokens have no times.
        """
        return None

    @property
    def date(self) -> str | None:
        """The date that its chat template writes as today's date; None if its prompts have none."""
        return written_date(self.template, self.tokenizer)

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens of prompt and response together, if the LLM's configuration names a limit."""
        return getattr(self.llm.config.get_text_config(), "max_position_embeddings", None)

    @property
    def eos_token_ids(self) -> list[int]:
        eos = self.model.generation_config.eos_token_id if self.model.generation_config else None
        if eos is None:
            eos = self.tokenizer.eos_token_id
        return eos if isinstance(eos, list) else [] if eos is None else [eos]

    def preprocess_audio(self, sources: list[Any], languages: list[str | None]) -> list[Any]:
        """The sources of a batch as prompts take them: unchanged, or a cascade's transcripts of them.

        Args:
            sources: waveforms (mono, 16 kHz) or transcripts.
            languages: of the speech, ISO 639-1, if known.
        """
        return sources

    def encode_response(self, text: str) -> list[int]:
        """Token ids of a reference response, followed by EOS as in training; `[]` for an empty text.

        Raises:
            InputError: the text contains a special token, such as EOS.
        """
        ids = encode_target(self.tokenizer, text)
        eos, own = self.eos_token_ids, self.tokenizer.eos_token_id
        # If there are several, the tokenizer's EOS is the one that ends a turn (Llama 3's <|eot_id|>).
        end = [own] if own in eos else eos[:1]
        return [*ids, *end] if ids else []

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def find_thought(self, prompt: Prompt, response: list[int]) -> Thought | None:
        """The thinking at the start of a response (token ids) to a prompt; None if there is none."""
        ended = bool(response) and response[-1] in self.eos_token_ids
        return find_thought(self.tokenizer, response, text_after_user(self.tokenizer, prompt), ended=ended)

    def save(self, folder: str | Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
        """Saves model and processor (or tokenizer) in a form that [`load`] reads; the folder appears only when
        complete.

        Args:
            folder: empty or not existing.
            state_dict: the weights, if the model itself holds only a part of them; its own if None.

        Raises:
            InputError: the folder is not empty.
            OSError: the disk is full, or the folder cannot be written.
        """
        with new_folder(folder) as temporary:
            self.model.save_pretrained(temporary, state_dict=state_dict)
            (self.processor or self.tokenizer).save_pretrained(temporary)
            if self.processor is None:
                keep_tokenizer(temporary)
            write_checksums(temporary)

    def encode_speech(self, waveform: NDArray[np.float32]) -> Tensor:
        """The speech tokens of an utterance, `[speech tokens, llm_dim]`, for any number of prompts about it."""
        # Any instruction works, because the LLM is not run here.
        prompt = self.encode(self._said("Listen."), waveform)
        return self.embed([prompt])[0][prompt.positions(Segment.SOURCE)]

    @torch.no_grad()
    @exact_float32()
    def embed(self, prompts: list[Prompt]) -> list[Tensor]:
        """Embeds prompts for the LLM: one tensor `[tokens, llm_dim]` for each prompt."""
        return [self._embed_encoding_once(prompt) for prompt in prompts]

    @contextmanager
    def encoding_speech_once(self) -> Iterator[None]:
        """Makes [`embed`] encode each utterance once inside the block, in which the weights must not change.

        The embeddings stay bitwise the same. A block inside another one shares its speech tokens.
        """
        outer = self._speech
        self._speech = outer or SpeechCache()
        try:
            yield
        finally:
            self._speech = outer

    def _embed_encoding_once(self, prompt: Prompt) -> Tensor:
        if self._speech is None or not prompt.features:
            return self.embed_prompt(prompt)
        key = self._speech.key(prompt.features, self.llm.dtype)
        if (speech := self._speech.get(key)) is not None:
            return self.embed_prompt(replace(prompt, features={}, speech=speech))
        embedded = self.embed_prompt(prompt)
        self._speech.put(key, embedded[prompt.positions(Segment.SOURCE)])
        return embedded

    def embed_prompt(self, prompt: Prompt) -> Tensor:
        """Embeds a prompt for the LLM, `[tokens, llm_dim]`, with the graph to the word embeddings and to an LSM's
        trainable connector weights.

        Raises:
            InputError: the model, an audio LLM of transformers, passes more to its LLM than embeddings; or the
                tokenizer has a token in the prompt that the LLM does not have.
        """
        self._check_ids(prompt)
        device = input_device(self.model)
        if prompt.speech is not None:
            return self._insert_speech(prompt, prompt.speech.to(device))
        ids = torch.tensor([prompt.input_ids], device=device)
        if prompt.features:
            return self._embed_speech(prompt, ids, {name: x.to(device) for name, x in prompt.features.items()})
        return self.llm.get_input_embeddings()(ids)[0]

    def _embed_speech(self, prompt: Prompt, ids: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Embeds a prompt about speech, `[tokens, llm_dim]`; `ids` `[1, tokens]` and `features` are on the device."""
        raise NotImplementedError

    def _check_ids(self, prompt: Prompt) -> None:
        embeddings: Any = self.llm.get_input_embeddings()
        rows = embeddings.weight.shape[0]
        # The placeholder for speech may be outside the vocabulary.
        speech = set(prompt.positions(Segment.SOURCE)) if self.source == "speech" else set()
        beyond = [token for i, token in enumerate(prompt.input_ids) if token >= rows and i not in speech]
        if beyond:
            raise InputError(
                f"{self.name}: the prompt has token {beyond[0]}, and the LLM has embeddings for {rows}: "
                "its tokenizer is that of another model"
            )

    def _insert_speech(self, prompt: Prompt, speech: Tensor) -> Tensor:
        """The embedded prompt with speech tokens in their places."""
        positions = prompt.positions(Segment.SOURCE)
        # The placeholder may be outside the vocabulary, so another token replaces it until it is overwritten.
        ids = torch.tensor(prompt.input_ids, device=speech.device)
        ids[positions] = 0
        embedded: Tensor = self.llm.get_input_embeddings()(ids)
        return embedded.index_copy(0, torch.tensor(positions, device=speech.device), speech.to(embedded.dtype))

    @exact_float32()
    def generate(self, embedded: list[Tensor], *, max_new_tokens: int) -> list[list[int]]:
        """Generates greedy responses to embedded prompts: the new token ids of each, including EOS if generated."""
        return generate_greedily(self.llm, embedded, max_new_tokens=max_new_tokens, eos_token_ids=self.eos_token_ids)

    def prompt_ids(self, sample: ReadableSample) -> list[int]:
        """Token ids of the prompt about a sample, `[positions]`; each speech token has the id of the placeholder.

        Under a template without an instruction (`llasm_released`), the sample's instruction has no effect.

        Args:
            sample: a [`Sample`](lsm_probe.Sample).

        Raises:
            InputError: the sample lacks the checkpoint's input; also for the reasons that [`encode`] gives.

        Example:
            >>> checkpoint = lsm_probe.load("builtin:untrained", device="cpu")
            >>> sample = lsm_probe.read_manifest("builtin:probe")[0]
            >>> len(checkpoint.prompt_ids(sample)) == len(checkpoint.logits(sample))
            True
        """
        return self._prompt_of(sample).input_ids

    @torch.no_grad()
    @exact_float32()
    def logits(self, sample: ReadableSample) -> Tensor:
        """Logits of the prompt about a sample, `[positions, vocabulary]`, float32 on the CPU.

        Row m predicts the token after position m; the last row predicts the first token of the response. Compare
        them with those of another implementation.

        Args:
            sample: a [`Sample`](lsm_probe.Sample).

        Raises:
            InputError: for the reasons that [`prompt_ids`] gives.
        """
        embedded = self.embed_prompt(self._prompt_of(sample))
        logits: Tensor = self.llm(inputs_embeds=embedded[None], use_cache=False).logits[0]
        return logits.float().cpu()

    def _prompt_of(self, sample: ReadableSample) -> Prompt:
        return self.encode(self._said(sample.instruction), sample.read_source(self.source))

    def _said(self, instruction: str) -> str:
        """The instruction, or an empty text if the template has no place for one."""
        return instruction if self.template.has_instruction else ""

    def check_length(self, prompt: Prompt, response_tokens: int) -> None:
        """Raises InputError if prompt and response exceed the context, or the length at which sparse attention is
        full."""
        length, limit = len(prompt) + response_tokens, self.context_length
        both = f"a prompt of {len(prompt)} tokens and a response of up to {response_tokens}"
        remedy = "shorten the source or lower --max-new-tokens"
        if limit is not None and length > limit:
            raise InputError(f"{both} exceed the context of {limit} tokens of {self.name}: {remedy}")
        config = self.llm.config.get_text_config()
        exact = find_exact_length(config)
        if exact is not None and length > exact[1]:
            raise InputError(
                f"{both} are too long for {self.name}: beyond {exact[1]} tokens ({exact[0]}) the sparse attention of "
                f"{config.model_type!r} models depends on the batch; {remedy}"
            )
