"""Prompts of Voxtral, whose tokenizer (mistral-common) writes token ids at once, with no text between."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from torch import Tensor

from lsm_probe.errors import InputError
from lsm_probe.extras import install_command
from lsm_probe.models.audio_llm_processor import AudioLlmProcessor
from lsm_probe.models.prompts import NoTokens, Prompt
from lsm_probe.models.segments import Piece, Segment, token_segments


class MistralProcessor(AudioLlmProcessor):
    """As [`AudioLlmProcessor`], for a processor round mistral-common's tokenizer.

    Control tokens are recognised by their ids, the instruction's by the text that they spell.
    """

    def example(self) -> Sequence[tuple[int, object]]:
        """As in the base class, with token ids instead of text: mistral-common renders no text."""
        prompt = self._write("{instruction}", None)
        return list(zip(prompt.segments, prompt.input_ids, strict=True))

    def _preprocess(self, instruction: str, audio: NDArray[np.float32]) -> tuple[list[int], dict[str, Tensor]]:
        file = io.BytesIO()  # FLOAT loses nothing
        soundfile.write(file, audio, self.rate, format="WAV", subtype="FLOAT")
        parts = [
            {"type": "text", "text": instruction.strip()},
            {"type": "audio", "base64": base64.b64encode(file.getvalue()).decode()},
        ]
        inputs = self._render(parts if self.template.name == "chat" else parts[::-1])
        features = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        return inputs["input_ids"][0].tolist(), features

    def _write(self, instruction: str, transcript: str | None) -> Prompt:
        if transcript is None:
            ids, _ = self._preprocess(instruction, np.zeros(self.rate, np.float32))
            pieces: list[Piece] = [(Segment.INSTRUCTION, instruction)]
        else:
            pieces = [(Segment.INSTRUCTION, instruction), (Segment.TEMPLATE, "\n"), (Segment.SOURCE, transcript)]
            pieces = pieces if self.template.name == "chat" else pieces[::-1]
            text = "".join(piece for _, piece in pieces)
            ids = self._render([{"type": "text", "text": text}])["input_ids"][0].tolist()
        segments = self._segments(ids, pieces)
        for segment, text in pieces:
            if segment not in segments and segment is not Segment.TEMPLATE:
                raise NoTokens(segment.name.lower(), f"{text!r} has no tokens")
        return Prompt(ids, segments)

    def _segments(self, ids: list[int], pieces: list[Piece]) -> list[Segment]:
        """The segment of each token; raises InputError if the tokens of text do not spell the pieces."""
        special = {*self.tokenizer.all_special_ids, self.audio_token_id}
        words = [i for i, token in enumerate(ids) if token not in special]
        spelled = [0, *(len(self._decode([ids[w] for w in words[: n + 1]])) for n in range(len(words)))]
        text = "".join(piece for _, piece in pieces)
        if self._decode([ids[w] for w in words]) != text:
            raise InputError(
                "the tokenizer rewrites the user's words, so it is not known which tokens are the instruction"
            )
        owners = token_segments(pieces, list(pairwise(spelled)))
        segments = [Segment.SOURCE if token == self.audio_token_id else Segment.TEMPLATE for token in ids]
        for position, owner in zip(words, owners, strict=True):
            segments[position] = owner
        return segments

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def _render(self, content: list[dict[str, str]]) -> dict[str, Any]:
        try:
            return dict(self.processor.apply_chat_template([{"role": "user", "content": content}]))
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the tokenizer rejects the prompt: {reason}") from error


def audio_llm_processor(processor: Any, audio_token_id: int, template: str | None) -> AudioLlmProcessor:
    """The wrapper that a processor of transformers needs.

    Raises:
        InputError: as of [`AudioLlmProcessor`], or mistral-common or the chat template is missing.
    """
    of_mistral = type(processor.tokenizer).__name__ == "MistralCommonBackend"
    if type(processor).__name__ == "VoxtralProcessor" and not of_mistral:  # then transformers makes do without
        raise InputError(
            f"Voxtral's tokenizer needs mistral-common, which is not installed: {install_command('voxtral')}"
        )
    if not of_mistral and not any(getattr(part, "chat_template", None) for part in (processor, processor.tokenizer)):
        raise InputError(
            f"{type(processor).__name__} has no chat template: add the chat_template.jinja of the original model"
        )
    return (MistralProcessor if of_mistral else AudioLlmProcessor)(processor, audio_token_id, template)
