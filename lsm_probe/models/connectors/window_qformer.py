"""The connector of arXiv 2410.03798: a Q-Former over windows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from lsm_probe.models.connectors.base import CONNECTORS, Connector, LsmProjectorConfig, UnusableConfig
from lsm_probe.models.connectors.windows import cut_windows, window_states


@CONNECTORS.register("window_qformer")
class WindowQFormer(Connector):
    """A BERT-style Q-Former over fixed windows of states (arXiv 2410.03798, section 3.1; SALMONN).

    Layer norm on the states, or on their first `layer_norm_dim` channels, `num_queries` learned queries
    cross-attending to each window of `window` states, a linear layer after. Windows do not overlap; the last partial
    window is kept, its missing states masked, unless `drop_partial_window` is set.
    """

    sizes: ClassVar[dict[str, int]] = {"window": 17, "hidden_size": 768}

    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__(config, encoder_dim=encoder_dim, llm_dim=llm_dim)
        if config.hidden_size % config.num_attention_heads:
            raise UnusableConfig(
                f"connector 'window_qformer': hidden_size {config.hidden_size} is not a multiple of "
                f"num_attention_heads {config.num_attention_heads}"
            )
        self.config = config
        self.layer_norm = nn.LayerNorm(_norm_dim(config, encoder_dim))
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

    @staticmethod
    def token_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
        return [states for states in window_states(config, num_states) for _ in range(config.num_queries)]

    def init_own_parameters(self, config: LsmProjectorConfig) -> None:
        self.query.normal_(0.0, config.initializer_range)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        windows, mask = cut_windows(states, lengths, self.config)
        first, rest = windows.tensor_split([*self.layer_norm.normalized_shape], dim=-1)
        output = self.qformer(
            query_embeds=self.query.expand(len(windows), -1, -1),
            encoder_hidden_states=torch.cat([self.layer_norm(first), rest], dim=-1),
            encoder_attention_mask=mask,
        ).last_hidden_state
        return self.linear(output.to(states.dtype)).flatten(0, 1)


def _norm_dim(config: LsmProjectorConfig, encoder_dim: int) -> int:
    if config.layer_norm_dim is None:
        return encoder_dim
    if config.layer_norm_dim > encoder_dim:
        raise UnusableConfig(f"layer_norm_dim {config.layer_norm_dim}: the states are {encoder_dim} wide")
    return config.layer_norm_dim
