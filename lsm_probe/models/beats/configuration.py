"""The sizes of a BEATs encoder."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from lsm_probe.models.connectors.base import UnusableConfig, check_count

SIZES = {
    "embed_dim": "patch_dim",
    "encoder_embed_dim": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_embed_dim": "intermediate_size",
    "conv_pos": "num_conv_pos_embeddings",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
    "num_buckets": "num_buckets",
    "max_distance": "max_bucket_distance",
}
"""Sizes: name in the original's checkpoints -> name in [`BeatsConfig`]."""


class BeatsConfig(PreTrainedConfig):
    """Configuration of [`Beats`]. The defaults are the sizes of the released checkpoints (arXiv 2212.09058).

    Args:
        patch_dim: width of a patch before its projection to `hidden_size`.
        hidden_size: width of the layers and of the states.
        num_hidden_layers: transformer layers.
        num_attention_heads: attention heads of each layer. They divide `hidden_size`.
        intermediate_size: width of each layer's feed-forward part.
        num_conv_pos_embeddings: kernel size of the positional convolution, in patches.
        num_conv_pos_embedding_groups: its groups. They divide `hidden_size`.
        num_buckets: buckets of relative positions, half of them for each direction. Of these, half are for single
            distances, and the others share the distances from `num_buckets // 4` on.
        max_bucket_distance: the distance, in patches, beyond which all positions share one bucket.

    Raises:
        UnusableConfig: a size is not a whole number of at least 1, does not divide `hidden_size`, or leaves no
            distances to share.
    """

    model_type = "beats"

    patch_dim: int = 512
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    num_buckets: int = 320
    max_bucket_distance: int = 800

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in SIZES.values():
            check_count(f"BEATs: {name}", getattr(self, name))
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise UnusableConfig(
                    f"BEATs: {name} is {getattr(self, name)}, which does not divide hidden_size {self.hidden_size}"
                )
        if not 1 <= self.num_buckets // 4 < self.max_bucket_distance:
            raise UnusableConfig(
                f"BEATs: num_buckets is {self.num_buckets} and max_bucket_distance {self.max_bucket_distance}: give at "
                "least 4 buckets, and a distance above a quarter of their number"
            )
