"""LLaSM's connector: one token per state."""

from __future__ import annotations

from torch import Tensor, nn

from lsm_probe.models.connectors.base import CONNECTORS, Connector, LsmProjectorConfig
from lsm_probe.models.connectors.windows import valid_states


@CONNECTORS.register("linear")
class Linear(Connector):
    """One linear layer on every state (LLaSM, whose states are those of Whisper's decoder)."""

    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__(config, encoder_dim=encoder_dim, llm_dim=llm_dim)
        self.linear = nn.Linear(encoder_dim, llm_dim)

    @staticmethod
    def token_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
        return [(state, state + 1) for state in range(num_states)]

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        return self.linear(states[valid_states(states, lengths)])
