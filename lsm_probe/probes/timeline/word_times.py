"""When each word of a known transcript is spoken: forced alignment by the embedded Whisper tiny.en."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from lsm_probe import assets
from lsm_probe.errors import InputError
from lsm_probe.models.speech_times import FRAME_SECONDS, PIECE_SECONDS, RATE
from lsm_probe.probes.timeline.words import Word, loudness
from lsm_probe.waveform import as_waveform

SILENCE_DB = -35
"""A 20 ms frame counts as silence if it is this much below the loudest frame of the utterance."""
_PAUSE = 7
"""Maximum number of silent frames within a word: stop consonants close the mouth for about 0.1 s."""


@torch.no_grad()
def word_times(waveform: NDArray[np.float32], transcript: str) -> list[Word]:
    """Finds the times of the words of an English transcript in its speech.

    Whisper's decoder reads the transcript. Some heads of its cross-attention ("alignment heads", which OpenAI lists for
    each model) follow the speech. Dynamic time warping through their mean gives each token its first frame, with a
    precision of 20 ms at best. Both steps are transformers' own, as in `generate(return_token_timestamps=True)`. A word
    ends where its punctuation or the next word begins. Silence at the ends of a word, and sound beyond a pause in it,
    is then removed. About one word in thirty gets no time of its own: it begins and ends where the next word begins.

    Args:
        waveform: mono at 16 kHz, `[samples]`, as [`as_waveform`] takes it, at most 30 s.
        transcript: the complete transcript of the speech.

    Raises:
        InputError: the speech is longer than 30 s, the transcript is longer than Whisper's context, or the embedded
            Whisper is not available. Also for the reasons that [`as_waveform`] gives.
    """
    waveform = as_waveform(waveform)
    if len(waveform) > PIECE_SECONDS * RATE:
        raise InputError(f"word times need speech of at most {PIECE_SECONDS} s, and this is longer")
    model, processor = _whisper()
    words = transcript.split()
    ids = [processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    start = [model.generation_config.decoder_start_token_id, model.generation_config.no_timestamps_token_id]
    tokens = torch.tensor([[*start, *(token for word in ids for token in word)]])
    limit = model.config.max_target_positions
    if tokens.shape[1] > limit:
        raise InputError(f"word times need a transcript of at most {limit - len(start)} tokens, and this is longer")
    features = processor.feature_extractor(waveform, sampling_rate=RATE, return_tensors="pt").input_features
    # Run separately: together with the decoder it would also return its own attention, 200 MB.
    encoded = model.model.encoder(features).last_hidden_state
    output: Seq2SeqLMOutput = model(
        encoder_outputs=BaseModelOutput(encoded), decoder_input_ids=tokens, output_attentions=True, use_cache=False
    )
    starts = model._extract_token_timestamps(
        _Generated(sequences=tokens, cross_attentions=(output.cross_attentions,)),
        model.generation_config.alignment_heads,
        num_frames=len(waveform) // processor.feature_extractor.hop_length,
        # The row of a token gives the start of the next one, so the second start token gives the start of the first
        # word.
        num_input_ids=1,
    )[0, 1:]
    sound = loudness(waveform) > SILENCE_DB
    return [_trimmed(word, sound) for word in _words(words, ids, starts.tolist(), processor.tokenizer)]


class _Generated(dict[str, Any]):
    """The part of `generate`'s return value that the timestamps are computed from."""

    __getattr__ = dict.__getitem__


def _words(words: list[str], ids: list[list[int]], starts: list[float], tokenizer: Any) -> list[Word]:
    """Joins tokens to words, given the start of each token and the end of the last."""
    placed = []
    first = 0
    for word, own in zip(words, ids, strict=True):
        spoken = [i for i, token in enumerate(own) if any(c.isalnum() for c in tokenizer.decode([token]))]
        past = spoken[-1] + 1 if spoken else len(own)
        placed.append(Word(word, round(starts[first], 2), round(starts[first + past], 2)))
        first += len(own)
    return placed


def _trimmed(word: Word, sound: NDArray[np.bool_]) -> Word:
    """The word from its first to its last frame with sound, if it has any; the longest part if a pause divides it."""
    first, past = (round(time / FRAME_SECONDS) for time in (word.begin, word.end))
    found = first + sound[first:past].nonzero()[0]
    if not len(found):
        return word
    part = max(np.split(found, (np.diff(found) > _PAUSE).nonzero()[0] + 1), key=len)
    return Word(word.text, round(part[0] * FRAME_SECONDS, 2), round((part[-1] + 1) * FRAME_SECONDS, 2))


@lru_cache(maxsize=1)
def _whisper() -> tuple[Any, Any]:
    """The embedded Whisper with its decoder. Eager, because no other attention returns its probabilities."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = assets.speech_encoder()
    model = WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return model, WhisperProcessor.from_pretrained(folder)
