"""Prompts of audio LLMs in transformers, made with their own processors, with a segment for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.prompts import NoTokens, Prompt, encode_pieces, refuse_placeholder, resize_source
from lsm_probe.models.segments import Piece, Segment
from lsm_probe.models.speech_times import PIECE_SECONDS, RATE
from lsm_probe.models.templates import find_template
from lsm_probe.models.templates.chat import TEMPLATE_ERRORS, Messages, chat_pieces, chat_template_renderer
from lsm_probe.waveform import as_waveform

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_LAST = RATE // 50
"""Number of samples in 20 ms, the most that a processor may drop at the end of speech to get whole frames."""
_ADVICE = "an audio LLM is asked through its own template alone, so it cannot be measured"


class AudioLlmProcessor:
    """Wraps the processor of an audio LLM.

    The user's turn is the instruction and then the speech, or the reverse (`chat_source_first`). The system text is the
    chat template's default. Features and the number of speech tokens come from the processor; the token ids of a prompt
    are compared with the processor's own.

    Args:
        processor: of the checkpoint, as transformers loads it.
        audio_token_id: the id that stands in `input_ids` for each speech token.
        template: `chat` or `chat_source_first`.

    Raises:
        InputError: the template is none of these, the processor has no feature extractor, or its files lack something.
    """

    def __init__(self, processor: Any, audio_token_id: int, template: str | None = None):
        self.template = find_template(template or "chat")
        if self.template.name not in ("chat", "chat_source_first"):
            reason = "an audio LLM has a chat template of its own; choose chat or chat_source_first"
            raise InputError(f"--template {self.template.name}: {reason}")
        self.processor = processor
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self.audio_token_id = audio_token_id
        audio_token = self.tokenizer.convert_ids_to_tokens(audio_token_id)
        if audio_token is None:
            raise InputError(
                f"the tokenizer has no token {audio_token_id}, which stands for the speech: its files are missing, or "
                "another model's"
            )
        self.audio_token = str(audio_token)
        extractor = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
        if extractor is None:
            raise InputError(
                f"{type(processor).__name__} has no feature extractor, so it takes no speech: give a model that does"
            )
        self.rate = int(getattr(extractor, "sampling_rate", RATE))

    def encode(self, instruction: str, audio: NDArray[np.float32]) -> Prompt:
        """Encodes one instruction about one utterance.

        Args:
            instruction: what the model is told to do.
            audio: mono waveform at 16 kHz, `[samples]`, as [`as_waveform`] takes it.

        Raises:
            InputError: as [`as_waveform`]; the instruction holds a control token or the audio placeholder, or has no
                tokens; there is too little speech, or the processor cuts some of it off; or it makes other tokens of
                the prompt than its template and tokenizer say.
        """
        audio = as_waveform(audio)
        refuse_placeholder("instruction", instruction, self.audio_token)
        # Checked first, so that errors name the instruction.
        written = self._write(instruction.strip(), None)
        ids, features = self._preprocess(instruction, self._resampled(audio))
        if self.audio_token_id not in ids:
            raise NoTokens("speech", f"of {len(audio) / RATE:.3f} s is too short for a single speech token")
        if len(audio) > PIECE_SECONDS * RATE:  # processors with this limit cut off longer speech silently
            self._check_whole(instruction, audio, features)
        prompt = resize_source(written, ids.count(self.audio_token_id), self.audio_token_id)
        if ids != prompt.input_ids:
            raise InputError(
                f"{type(self.processor).__name__} makes other tokens of this prompt than its chat template and "
                "tokenizer do, so it is not known which tokens are the instruction"
            )
        return replace(prompt, features=features)

    def encode_with_speech(self, instruction: str, speech: Tensor) -> Prompt:
        """As [`LsmProcessor.encode_with_speech`]: `speech` is `[speech tokens, llm_dim]`."""
        refuse_placeholder("instruction", instruction, self.audio_token)
        written = self._write(instruction.strip(), None)
        return replace(resize_source(written, len(speech), self.audio_token_id), speech=speech)

    def encode_text(self, instruction: str, transcript: str) -> Prompt:
        """As [`LsmProcessor.encode_text`], with the same errors."""
        refuse_placeholder("transcript", transcript, self.audio_token)
        return self._write(instruction.strip(), transcript.strip())

    def example(self) -> Sequence[tuple[int, object]]:
        """As [`LsmProcessor.example`]."""
        return self._pieces("{instruction}", None)

    def save_pretrained(self, folder: str | Path) -> None:
        self.processor.save_pretrained(folder)

    def _resampled(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        return audio if self.rate == RATE else soxr.resample(audio, RATE, self.rate)

    def _check_whole(self, instruction: str, audio: NDArray[np.float32], features: dict[str, Tensor]) -> None:
        other = audio.copy()  # ends in a loud 2 kHz tone, whatever the speech ends in
        other[-_LAST:] = np.where(np.arange(_LAST) % 8 < 4, 1, -1)
        _, otherwise = self._preprocess(instruction, self._resampled(other))
        if all(a.shape == otherwise[name].shape and bool((a == otherwise[name]).all()) for name, a in features.items()):
            raise InputError(
                f"{type(self.processor).__name__} cuts off the end of {len(audio) / RATE:.1f} s of speech: give "
                f"pieces of at most {PIECE_SECONDS} s"
            )

    def _write(self, instruction: str, transcript: str | None) -> Prompt:
        """The prompt about a transcript, or with one placeholder for the speech."""
        pieces = self._pieces(instruction, transcript)
        prompt = encode_pieces(self.tokenizer, pieces, placeholder=self.audio_token)
        first = self._put_first("".join(text for _, text in pieces), prompt.input_ids)
        return Prompt([*first, *prompt.input_ids], [*[Segment.TEMPLATE] * len(first), *prompt.segments])

    def _put_first(self, text: str, ids: list[int]) -> list[int]:
        """Tokens that the tokenizer itself puts before a prompt: a BOS, unless the chat template has written one."""
        if self._has_bos(text):
            return []
        own = list(self.tokenizer(text)["input_ids"])
        extra = len(own) - len(ids)
        return own[:extra] if extra > 0 and own[extra:] == ids else []

    def _has_bos(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return bool(bos) and text.startswith(str(bos))

    def _preprocess(self, instruction: str, audio: NDArray[np.float32]) -> tuple[list[int], dict[str, Tensor]]:
        """The processor's own token ids and features of a prompt about speech."""
        text = "".join(piece for _, piece in self._pieces(instruction.strip(), None))
        options = {
            "audio_kwargs": {"sampling_rate": self.rate},
            "text_kwargs": {"add_special_tokens": False} if self._has_bos(text) else {},
        }
        try:
            inputs = dict(self.processor(text=[text], audio=[audio], return_tensors="pt", **options))
        except (ValueError, RuntimeError) as error:  # some raise for speech shorter than one of their windows
            reason, seconds = " ".join(str(error).split())[:200], len(audio) / self.rate
            raise InputError(f"{type(self.processor).__name__} takes no {seconds:.3f} s of speech: {reason}") from error
        features = {name: value for name, value in inputs.items() if name not in _TEXT_INPUTS}
        return inputs["input_ids"][0].tolist(), features

    def _pieces(self, instruction: str, transcript: str | None) -> list[Piece]:
        if transcript is not None:
            return chat_pieces(self._apply, self._turn, instruction, transcript, advice=_ADVICE)
        turn = self._turn_with_audio if self._lays_out_audio() else self._turn
        return chat_pieces(self._apply, turn, instruction, self.audio_token, self.audio_token, advice=_ADVICE)

    @property
    def _apply(self) -> Callable[[Messages], str]:
        has_template = getattr(self.processor, "chat_template", None)
        return chat_template_renderer(self.processor if has_template else self.tokenizer)

    def _lays_out_audio(self) -> bool:
        """Whether the chat template writes the placeholder for audio content; else the text must hold it."""
        try:
            return self.audio_token in self._apply(self._turn_with_audio("", self.audio_token))
        except TEMPLATE_ERRORS:
            return False

    def _turn(self, instruction: str, source: str) -> Messages:
        if self.template.name == "chat":
            content = f"{instruction}\n{source}"
        else:
            content = f"{source}{instruction}" if source == self.audio_token else f"{source}\n{instruction}"
        return [{"role": "user", "content": content}]

    def _turn_with_audio(self, instruction: str, source: str) -> Messages:
        audio = {"type": "audio", "audio": ""}
        content = [audio, {"type": "text", "text": instruction}]
        if self.template.name == "chat":
            content = [{"type": "text", "text": f"{instruction}\n"}, audio]
        return [{"role": "user", "content": content}]
