"""Configuration of a large speech-text model: Whisper encoder, connector, decoder-only LLM."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, PreTrainedConfig, WhisperConfig


class LsmProjectorConfig(PreTrainedConfig):
    """The connector between encoder and LLM.

    Args:
        connector: name of the connector; `window_qformer` is the one of arXiv 2410.03798.
        window: encoder frames (20 ms each) read by one window; 17 frames are 0.34 s.
        num_queries: speech tokens made from one window.
        hidden_size: width of the Q-Former.
        num_hidden_layers: Q-Former blocks, each with cross-attention.
        num_attention_heads: heads of each block.
        intermediate_size: width of each block's feed-forward layer.
        dropout: dropout in training, on hidden states and attention probabilities.
    """

    model_type = "lsm_projector"

    connector: str = "window_qformer"
    window: int = 17
    num_queries: int = 1
    hidden_size: int = 768
    num_hidden_layers: int = 2
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    dropout: float = 0.1
    initializer_range: float = 0.02


class LsmConfig(PreTrainedConfig):
    """Configuration of [`LsmForConditionalGeneration`].

    Args:
        audio_config: a `WhisperConfig`; only the encoder is built.
        projector_config: an [`LsmProjectorConfig`].
        text_config: the configuration of any decoder-only causal LM in transformers.
        audio_token_id: id that stands for one speech token in `input_ids`. It defaults to the LLM's vocabulary
            size, an id no text token has, and is replaced before the embedding: the LLM's weights and the width
            of its logits never change.
    """

    model_type = "lsm"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "audio_config": WhisperConfig,
        "projector_config": LsmProjectorConfig,
        "text_config": PreTrainedConfig,
    }

    audio_config: Any = None
    projector_config: Any = None
    text_config: Any = None
    audio_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.audio_config is None or isinstance(self.audio_config, dict):
            self.audio_config = WhisperConfig(**(self.audio_config or {}))
        if self.projector_config is None or isinstance(self.projector_config, dict):
            self.projector_config = LsmProjectorConfig(**(self.projector_config or {}))
        if self.text_config is None or isinstance(self.text_config, dict):
            text_config = dict(self.text_config or {})
            self.text_config = CONFIG_MAPPING[text_config.pop("model_type", "llama")](**text_config)
        if self.audio_token_id is None:
            self.audio_token_id = self.text_config.vocab_size
        # The LLM ties (or does not tie) its own embeddings; there is nothing to tie at this level.
        self.tie_word_embeddings = False
        super().__post_init__(**kwargs)
