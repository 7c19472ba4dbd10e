"""The BEATs encoder, built from transformers' WavLM layers where both compute the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import WavLMConfig
from transformers.models.wavlm.modeling_wavlm import (
    WavLMAttention,
    WavLMEncoder,
    WavLMEncoderLayer,
    WavLMFeatureProjection,
)

from lsm_probe.models.beats.configuration import BeatsConfig
from lsm_probe.models.beats.features import PATCH


class Beats(nn.Module):
    """Encodes audio of any kind, speech or not, to states (arXiv 2212.09058).

    Patches of 160 ms and 16 mel bins go through a linear map, a layer norm, a projection, a convolution that adds
    their position, and transformer layers. The states are in order of time; those of one time from the lowest mel
    bins to the highest. There is no dropout: the encoder is read, not trained.

    Example:
        >>> beats = Beats(BeatsConfig(num_hidden_layers=1))
        >>> beats(torch.zeros(2, 100, 128), torch.tensor([100, 40])).shape
        torch.Size([2, 48, 768])
    """

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(1, config.patch_dim, kernel_size=PATCH, stride=PATCH, bias=False)
        wavlm = _as_wavlm(config)
        self.feature_projection = WavLMFeatureProjection(wavlm)
        self.encoder = BeatsEncoder(wavlm)

    def forward(self, features: Tensor, num_frames: Tensor) -> Tensor:
        """Encodes the clips of a batch one by one, because padding would change their states.

        Args:
            features: what [`beats_features`] gives, padded, `[clips, max_frames, 128]`, in any floating-point type.
            num_frames: frames of each clip, `[clips]`, at least 16.

        Returns:
            `[clips, max_states, hidden_size]` in the type of the weights. A clip has `num_frames // 16 * 8` states;
            zeros follow those of the shorter clips.
        """
        clips = zip(features.to(self.patch_embedding.weight.dtype), num_frames.tolist(), strict=True)
        return pad_sequence([self._encode(clip[:length]) for clip, length in clips], batch_first=True)

    def _encode(self, clip: Tensor) -> Tensor:
        """Encodes one clip, `[frames, 128]`, to `[states, hidden_size]`."""
        patches = self.patch_embedding(clip[None, None]).flatten(2).transpose(1, 2)
        projected, _ = self.feature_projection(patches)
        return self.encoder(projected).last_hidden_state[0]


class BeatsEncoder(WavLMEncoder):
    """WavLM's encoder with [`BeatsLayer`] for its layers. The first makes the position bias that all of them use."""

    def __init__(self, config: WavLMConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(BeatsLayer(config, index == 0) for index in range(config.num_hidden_layers))


class BeatsLayer(WavLMEncoderLayer):
    """WavLM's layer with deep norm: both residuals are multiplied by `(2 * layers) ** 0.25` (arXiv 2203.00555)."""

    def __init__(self, config: WavLMConfig, has_relative_position_bias: bool):
        super().__init__(config, has_relative_position_bias)
        self.attention = BeatsAttention(
            config.hidden_size,
            config.num_attention_heads,
            num_buckets=config.num_buckets,
            max_distance=config.max_bucket_distance,
            has_relative_position_bias=has_relative_position_bias,
        )
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25

    def forward(  # type: ignore[override]  # without attention mask: no clip is padded
        self, hidden_states: Tensor, position_bias: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        attended, _weights, position_bias = self.attention(hidden_states, position_bias=position_bias)
        hidden_states = self.layer_norm(self.residual_scale * hidden_states + attended)
        transformed = self.feed_forward(hidden_states)
        return self.final_layer_norm(self.residual_scale * hidden_states + transformed), position_bias


class BeatsAttention(WavLMAttention):
    """WavLM's attention with gates that read the queries (arXiv 2106.16138), not the layer's input."""

    def forward(  # type: ignore[override]  # without attention mask: no clip is padded
        self, hidden_states: Tensor, position_bias: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attends from all states to all.

        Args:
            hidden_states: `[1, states, hidden_size]`.
            position_bias: `[heads, states, states]`; None computes it from this layer's embedding.

        Returns:
            The output `[1, states, hidden_size]`, the attention weights, and the position bias before the gates.
        """
        num_states = hidden_states.shape[1]
        if position_bias is None:
            position_bias = self.compute_bias(num_states, num_states)
        queries = self.q_proj(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        update, reset = self.gru_rel_pos_linear(queries).unflatten(-1, (2, 4)).sum(-1).sigmoid().split(1, dim=-1)
        gate = 2 + update * (reset * self.gru_rel_pos_const - 1)
        gated_bias = (gate * position_bias).flatten(0, 1)
        output, weights = self.torch_multi_head_self_attention(hidden_states, None, gated_bias)  # type: ignore[arg-type]
        return output, weights, position_bias


def _as_wavlm(config: BeatsConfig) -> WavLMConfig:
    """The configuration that the layers of WavLM read. What it does not name keeps WavLM's value, which is BEATs' too:
    exact GELU, layer norms with an epsilon of 1e-5."""
    return WavLMConfig(
        conv_dim=(config.patch_dim,),
        conv_stride=(PATCH,),
        conv_kernel=(PATCH,),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        num_conv_pos_embeddings=config.num_conv_pos_embeddings,
        num_conv_pos_embedding_groups=config.num_conv_pos_embedding_groups,
        num_buckets=config.num_buckets,
        max_bucket_distance=config.max_bucket_distance,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
    )
