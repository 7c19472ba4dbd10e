"""BLSP's connector: strided convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from lsm_probe.models.connectors.base import CONNECTORS, Connector, LsmProjectorConfig
from lsm_probe.models.connectors.windows import blank_padding, valid_states


@CONNECTORS.register("conv")
class Conv(Connector):
    """Three convolutions that halve the rate, a bottleneck and a layer norm: eight states per token (BLSP).

    Each convolution (kernel 5, stride 2, padding 2) doubles the channels, and a gated linear unit halves them. The last
    one has the LLM's width. The bottleneck (`hidden_size` wide, GELU, no biases) has a residual connection.

    Every convolution sees zeros beyond the valid states, as it would at the end of a single piece.
    """

    sizes: ClassVar[dict[str, int]] = {"hidden_size": 512}

    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__(config, encoder_dim=encoder_dim, llm_dim=llm_dim)
        widths = [encoder_dim, encoder_dim, encoder_dim, llm_dim]
        self.convs = nn.ModuleList(
            nn.Conv1d(read, 2 * made, kernel_size=5, stride=2, padding=2) for read, made in pairwise(widths)
        )
        self.down = nn.Linear(llm_dim, config.hidden_size, bias=False)
        self.up = nn.Linear(config.hidden_size, llm_dim, bias=False)
        self.layer_norm = nn.LayerNorm(llm_dim)

    @staticmethod
    def token_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
        """Token i sees states 8 i - 14 to 8 i + 14, so each state is assigned to the token with the nearest centre."""
        borders = [0, *range(4, num_states - 4, 8), num_states]
        return list(pairwise(borders)) if num_states else []

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        for conv in self.convs:
            channels = conv(blank_padding(states, lengths).transpose(1, 2))
            states = nn.functional.glu(channels, dim=1).transpose(1, 2)
            lengths = (lengths + 1) // 2
        tokens = states[valid_states(states, lengths)]
        return self.layer_norm(tokens + self.up(nn.functional.gelu(self.down(tokens))))
