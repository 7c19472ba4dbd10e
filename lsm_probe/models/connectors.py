"""Connectors: from the encoder's frames to the LLM's speech tokens.

Each connector is a module called as `connector(frames, lengths)`. `frames` is `[pieces, max_frames, encoder_dim]`,
`lengths` is `[pieces]` with the number of valid frames of each piece (a piece is at most 30 s of one utterance).
It returns `[tokens, llm_dim]`: the speech tokens of all pieces one after another, without padding, so that what a
piece becomes never depends on what shares its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from lsm_probe.models.configuration_lsm import LsmProjectorConfig


def encoder_frames(mel_frames: Tensor) -> Tensor:
    """Whisper frames (20 ms) of mel frames (10 ms): the second convolution halves the rate, a last odd frame stays."""
    return (mel_frames + 1) // 2


def num_speech_tokens(config: LsmProjectorConfig, num_frames: int) -> int:
    """Speech tokens the connector makes of a piece of `num_frames` valid encoder frames."""
    return -(-num_frames // config.window) * config.num_queries


class WindowQFormer(nn.Module):
    """A BERT-style Q-Former over fixed windows of frames (arXiv 2410.03798, section 3.1; SALMONN).

    Layer norm on the frames, `num_queries` learned queries cross-attending to each window of `window` frames,
    a linear layer after. Windows do not overlap; the last partial window is kept and its missing frames masked.
    """

    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__()
        self.window = config.window
        self.layer_norm = nn.LayerNorm(encoder_dim)
        self.query = nn.Parameter(torch.empty(1, config.num_queries, config.hidden_size))
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                initializer_range=config.initializer_range,
                encoder_hidden_size=encoder_dim,
                cross_attention_frequency=1,
            )
        )
        self.linear = nn.Linear(config.hidden_size, llm_dim)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Turns `frames [pieces, max_frames, encoder_dim]` into speech tokens `[tokens, llm_dim]`.

        Only windows that hold a valid frame are computed.
        """
        windows, mask = _cut_windows(self.layer_norm(frames), lengths, self.window)
        output = self.qformer(
            query_embeds=self.query.expand(len(windows), -1, -1),
            encoder_hidden_states=windows,
            encoder_attention_mask=mask,
        ).last_hidden_state
        tokens: Tensor = self.linear(output.to(frames.dtype))
        return tokens.flatten(0, 1)


def _cut_windows(frames: Tensor, lengths: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Cuts `[pieces, max_frames, dim]` into `[windows, window, dim]` and a validity mask `[windows, window]`."""
    padding = -frames.shape[1] % window
    frames = nn.functional.pad(frames, (0, 0, 0, padding))
    valid = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
    windows = frames.unflatten(1, (-1, window))
    mask = valid.unflatten(1, (-1, window))
    used = mask.any(-1)
    return windows[used], mask[used]


CONNECTORS: dict[str, type[WindowQFormer]] = {"window_qformer": WindowQFormer}
