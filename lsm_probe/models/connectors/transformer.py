"""A connector that reads the whole utterance: windows of states, then transformer layers over them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lsm_probe.models.connectors.base import CONNECTORS, Connector, LsmProjectorConfig, UnusableConfig
from lsm_probe.models.connectors.windows import cut_windows, valid_states, window_size, window_states

_POSITION_KERNEL = 7
"""Windows that the position convolution reads: the token's own and three on each side."""


@CONNECTORS.register("transformer")
class Transformer(Connector):
    """`window` states stacked into one vector, then `num_hidden_layers` transformer layers over all windows of a piece.

    In the other connectors a token sees one window (0.1 to 0.34 s) or, in `conv`, 0.6 s. Here it sees the whole piece,
    so it can represent a word that is longer than its window. The encoder's states carry their position in 30 s; a
    depthwise convolution over 7 windows adds the order of neighbours. Layers normalise before attention (bidirectional)
    and feed-forward (GELU); a layer norm and a linear layer map to the LLM's width.
    """

    sizes: ClassVar[dict[str, int]] = {"window": 8, "hidden_size": 384}

    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__(config, encoder_dim=encoder_dim, llm_dim=llm_dim)
        self.config = config
        size, heads = config.hidden_size, config.num_attention_heads
        if size % heads:
            raise UnusableConfig(
                f"connector 'transformer': hidden_size {size} is no multiple of num_attention_heads {heads}"
            )
        self.stack = nn.Linear(window_size(config, 0) * encoder_dim, size)
        self.position = nn.Conv1d(size, size, _POSITION_KERNEL, padding=_POSITION_KERNEL // 2, groups=size)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                size,
                heads,
                config.intermediate_size,
                config.dropout,
                nn.functional.gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.output = nn.Linear(size, llm_dim)

    @staticmethod
    def token_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
        return window_states(config, num_states)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        windows, _ = cut_windows(states, lengths, self.config)
        counts = [len(window_states(self.config, length)) for length in lengths.tolist()]
        # Windows of a piece side by side again, `[pieces, windows, hidden_size]`.
        hidden = pad_sequence(self.stack(windows.flatten(1)).split(counts), batch_first=True)
        valid = valid_states(hidden, torch.tensor(counts, device=hidden.device))
        hidden = hidden + self.position(hidden.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~valid)
        return self.output(self.norm(hidden[valid]))
