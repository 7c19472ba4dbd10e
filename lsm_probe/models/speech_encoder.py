"""The audio tower: the parts of Whisper that run, their input, and the states that the connector reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperConfig, WhisperModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lsm_probe.models.beats import Beats, BeatsConfig
from lsm_probe.models.beats.features import MEL_BINS, PATCH
from lsm_probe.models.configuration_lsm import SPEECH_ALONE, LsmConfig
from lsm_probe.models.connectors.windows import blank_padding


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


class WhisperAndBeats(nn.Module):
    """Whisper's encoder, and BEATs with a layer norm after it (SALMONN)."""

    def __init__(self, encoder: WhisperEncoder, config: BeatsConfig):
        super().__init__()
        self.encoder = encoder
        self.beats = Beats(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.dtype

    def forward(self, states: Tensor, beats_features: Tensor, beats_frames: Tensor) -> Tensor:
        """Puts BEATs' states beside Whisper's; a piece has about as many, and zeros take the place of missing ones.

        Args:
            states: of Whisper's encoder, `[pieces, max_states, d]`.
            beats_features: of each piece, `[pieces, max_frames, 128]`.
            beats_frames: how many frames each has, `[pieces]`.

        Returns:
            `[pieces, max_states, d + beats_d]`.
        """
        audio = self.layer_norm(self.beats(beats_features, beats_frames))
        audio = blank_padding(audio, beats_frames // PATCH * (MEL_BINS // PATCH))
        # There may be more of them only where the speech was filled up to what BEATs needs.
        audio = nn.functional.pad(audio, (0, 0, 0, states.shape[1] - audio.shape[1]))
        return torch.cat([states, audio], dim=-1)


class QueriedWhisper(WhisperModel):
    """Whisper whose decoder reads learned vectors (`query`, `[queries, d]`) in the place of embedded tokens (DiVA)."""

    def __init__(self, config: WhisperConfig, queries: int):
        super().__init__(config)
        # Drawn here: transformers counts a Whisper as drawn once it is made.
        self.query = nn.Parameter(config.init_std * torch.randn(queries, config.d_model))


def make_audio_tower(config: LsmConfig) -> WhisperEncoder | WhisperModel | WhisperAndBeats:
    """The audio tower of a model of this configuration."""
    if config.decoder_states is not None and config.decoder_input == "learned":
        return QueriedWhisper(config.audio_config, config.decoder_states)
    if config.decoder_states is not None:
        return WhisperModel(config.audio_config)
    encoder_class = TrimmedWhisperEncoder if config.encoder_context in SPEECH_ALONE else WhisperEncoder
    encoder = encoder_class(config.audio_config)
    return encoder if config.beats_config is None else WhisperAndBeats(encoder, config.beats_config)


def num_states(mel_frames: Tensor, decoder_states: int | None) -> Tensor:
    """Valid states of pieces of `mel_frames` (10 ms each), `[pieces]`.

    The encoder's second convolution halves the rate, and a last odd frame stays; the decoder's states are as many for
    any length.
    """
    if decoder_states is not None:
        return torch.full_like(mel_frames, decoder_states)
    return (mel_frames + 1) // 2


def run_audio_tower(
    tower: Any,
    config: LsmConfig,
    features: Tensor,
    mel_frames: Tensor,
    beats_features: Tensor | None = None,
    beats_frames: Tensor | None = None,
) -> Tensor:
    """Runs the tower that [`make_audio_tower`] made.

    Args:
        tower: the audio tower.
        config: that of the model.
        features: log-mel features of 30 s pieces, `[pieces, mel_bins, 3000]`.
        mel_frames: how many frames of each piece are speech, or count as it, `[pieces]`.
        beats_features, beats_frames: of a tower with BEATs, see [`WhisperAndBeats`].

    Raises:
        ValueError: BEATs' inputs were given to a tower without it, or not given to one with it.

    Returns:
        `[pieces, max_states, d]`, of which the first [`num_states`] of each piece are valid.
    """
    needed = (config.beats_config is not None,) * 2
    if (beats_features is not None, beats_frames is not None) != needed:
        what = "give beats_features and beats_frames" if needed[0] else "this model has no BEATs: leave them out"
        raise ValueError(f"{what}, as the model's own processor does")
    if beats_features is not None:
        return tower(_run_encoder(tower.encoder, config, features, mel_frames), beats_features, beats_frames)
    if isinstance(tower, QueriedWhisper):
        query = tower.query.expand(len(features), -1, -1)
        return tower(features, decoder_inputs_embeds=query, use_cache=False).last_hidden_state
    if config.decoder_states is not None:
        start = config.audio_config.decoder_start_token_id
        ids = mel_frames.new_full((len(features), config.decoder_states), start)
        return tower(features, decoder_input_ids=ids, use_cache=False).last_hidden_state
    return _run_encoder(tower, config, features, mel_frames)


def _run_encoder(encoder: Any, config: LsmConfig, features: Tensor, mel_frames: Tensor) -> Tensor:
    if config.encoder_context in SPEECH_ALONE:
        return _encode_by_length(encoder, features, mel_frames)
    states = encoder(features).last_hidden_state
    return states[:, : int(num_states(mel_frames, None).max())]


def _encode_by_length(encoder: Any, features: Tensor, mel_frames: Tensor) -> Tensor:
    """Runs the pieces of one length together, and no others with them: padding would change their states."""
    states = [features.new_zeros(0, encoder.config.d_model)] * len(features)
    mel_frames = mel_frames.cpu()  # one copy for the batch, because a copy waits for the device
    for length in mel_frames[mel_frames > 0].unique().tolist():
        rows = (mel_frames == length).nonzero()[:, 0]
        made = encoder(features[rows, :, :length]).last_hidden_state
        for row, piece in zip(rows.tolist(), made, strict=True):
            states[row] = piece
    return pad_sequence(states, batch_first=True)
