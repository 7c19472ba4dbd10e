"""Ultravox's connector: neighbouring states side by side, normalised and gated."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from lsm_probe.models.connectors.base import CONNECTORS, Connector, LsmProjectorConfig
from lsm_probe.models.connectors.windows import cut_windows, window_size, window_states

_EPSILON = 1e-6


@CONNECTORS.register("swiglu_stack")
class SwigluStack(Connector):
    """`window` states stacked into one vector, RMSNorm, two linear layers with a SwiGLU between (Ultravox).

    The first linear layer makes two vectors of width `hidden_size`; the SiLU of the second gates the first. A second
    RMSNorm stands after the gate (`middle_norm`, Ultravox from 0.5) or after the second linear layer (0.4.1 and
    before). No layer has a bias.

    The states of a last stack that is not full are kept, with zeros for the missing ones, unless
    `drop_partial_window` is set.
    """

    sizes: ClassVar[dict[str, int]] = {"window": 8, "hidden_size": 2048}

    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__(config, encoder_dim=encoder_dim, llm_dim=llm_dim)
        self.config = config
        stacked, hidden = window_size(config, 0) * encoder_dim, config.hidden_size
        self.ln_pre = nn.RMSNorm(stacked, eps=_EPSILON)
        self.linear_1 = nn.Linear(stacked, 2 * hidden, bias=False)
        self.linear_2 = nn.Linear(hidden, llm_dim, bias=False)
        if config.middle_norm:
            self.ln_mid = nn.RMSNorm(hidden, eps=_EPSILON)
        else:
            self.ln_post = nn.RMSNorm(llm_dim, eps=_EPSILON)

    @staticmethod
    def token_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
        return window_states(config, num_states)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        stacks, _ = cut_windows(states, lengths, self.config)
        value, gate = self.linear_1(self.ln_pre(stacks.flatten(1))).chunk(2, dim=-1)
        gated = nn.functional.silu(gate) * value
        return self.linear_2(self.ln_mid(gated)) if self.config.middle_norm else self.ln_post(self.linear_2(gated))
