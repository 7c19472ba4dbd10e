"""LLaMA-Omni's connector: neighbouring states side by side."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from lsm_probe.models.connectors.base import CONNECTORS, Connector, LsmProjectorConfig
from lsm_probe.models.connectors.windows import cut_windows, window_size, window_states


@CONNECTORS.register("frame_stack")
class FrameStack(Connector):
    """`window` states stacked into one vector, then two linear layers with a ReLU between (LLaMA-Omni).

    The states of a last stack that is not full are kept, with zeros for the missing ones, unless
    `drop_partial_window` is set, as in the original.
    """

    sizes: ClassVar[dict[str, int]] = {"window": 5, "hidden_size": 2048}

    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__(config, encoder_dim=encoder_dim, llm_dim=llm_dim)
        self.config = config
        self.linear_1 = nn.Linear(window_size(config, 0) * encoder_dim, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, llm_dim)

    @staticmethod
    def token_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
        return window_states(config, num_states)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        stacks, _ = cut_windows(states, lengths, self.config)
        return self.linear_2(nn.functional.relu(self.linear_1(stacks.flatten(1))))
