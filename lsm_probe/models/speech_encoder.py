"""The audio tower: how much of Whisper runs, on how much of the speech, and the states it hands on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lsm_probe.models.configuration_lsm import SPEECH_ALONE, LsmConfig


class TrimmedWhisperEncoder(WhisperEncoder):
    """Whisper's encoder on speech of any length up to 30 s: the same weights, the first positions.

    `WhisperEncoder` refuses all but 30 s. The states differ from those it gives the same speech followed by silence,
    for which its attention has no mask; in tiny.en by a fifth, and most in the last 0.2 s. Its decoder
    still transcribes every word, but does not find the end of the speech and repeats the words.
    """

    def forward(self, input_features: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Encodes mel features `[pieces, mel_bins, mel_frames]`, all of it speech, to `[pieces, states, d]`."""
        hidden = nn.functional.gelu(self.conv1(input_features))
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
        hidden = nn.functional.dropout(hidden, p=self.dropout, training=self.training)
        for layer in self.layers:
            hidden = layer(hidden, None, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden))


def make_audio_tower(config: LsmConfig) -> WhisperEncoder | WhisperModel:
    """The audio tower of a model of this configuration."""
    if config.decoder_states is not None:
        return WhisperModel(config.audio_config)
    encoder = TrimmedWhisperEncoder if config.encoder_context in SPEECH_ALONE else WhisperEncoder
    return encoder(config.audio_config)


def num_states(mel_frames: Tensor, decoder_states: int | None) -> Tensor:
    """Valid states of pieces of `mel_frames` (10 ms each), `[pieces]`.

    The encoder's second convolution halves the rate, and a last odd frame stays; the decoder's states are as many for
    any length.
    """
    if decoder_states is not None:
        return torch.full_like(mel_frames, decoder_states)
    return (mel_frames + 1) // 2


def run_audio_tower(tower: Any, config: LsmConfig, features: Tensor, mel_frames: Tensor) -> Tensor:
    """Runs the tower that [`make_audio_tower`] made.

    Args:
        tower: the audio tower.
        config: that of the model.
        features: log-mel features of 30 s pieces, `[pieces, mel_bins, 3000]`.
        mel_frames: how many frames of each piece are speech, or count as it, `[pieces]`.

    Returns:
        `[pieces, max_states, d]`, of which the first [`num_states`] of each piece are valid.
    """
    if config.decoder_states is not None:
        start = config.audio_config.decoder_start_token_id
        ids = mel_frames.new_full((len(features), config.decoder_states), start)
        return tower(features, decoder_input_ids=ids, use_cache=False).last_hidden_state
    if config.encoder_context in SPEECH_ALONE:
        return _encode_by_length(tower, features, mel_frames)
    states = tower(features).last_hidden_state
    return states[:, : int(num_states(mel_frames, None).max())]


def _encode_by_length(encoder: Any, features: Tensor, mel_frames: Tensor) -> Tensor:
    """Runs the pieces of one length together, and no others with them: padding would change their states."""
    states = [features.new_zeros(0, encoder.config.d_model)] * len(features)
    for length in mel_frames[mel_frames > 0].unique().tolist():
        rows = (mel_frames == length).nonzero()[:, 0]
        made = encoder(features[rows, :, :length]).last_hidden_state
        for row, piece in zip(rows.tolist(), made, strict=True):
            states[row] = piece
    return pad_sequence(states, batch_first=True)
