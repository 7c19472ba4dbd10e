"""Configuration of a large speech-text model: Whisper, connector, decoder-only LLM."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, PreTrainedConfig, WhisperConfig

from lsm_probe.models.beats.configuration import BeatsConfig
from lsm_probe.models.connectors.base import LsmProjectorConfig, UnusableConfig, check_count

ENCODER_CONTEXTS = ("full", "trimmed", "padded", "clip")
DECODER_INPUTS = ("start_tokens", "learned")
SPEECH_ALONE = ("trimmed", "clip")
"""Contexts in which the encoder sees only the speech, so that pieces of different lengths do not run together."""


class LsmConfig(PreTrainedConfig):
    """Configuration of [`LsmForConditionalGeneration`].

    Args:
        audio_config: a `WhisperConfig`.
        projector_config: an [`LsmProjectorConfig`].
        text_config: the configuration of any decoder-only causal LM in transformers.
        audio_token_id: id of one speech token in `input_ids`. It defaults to the LLM's vocabulary size, an id that no
            text token has, and is replaced before the embedding. So the LLM's weights and logits keep their size.
        decoder_states: None: the audio tower is Whisper's encoder, and its states go to the connector. A number: the
            audio tower is the whole Whisper. Its decoder reads this number of vectors, and the connector reads the
            decoder's last hidden states, the same number for any length of speech (LLaSM: 64, DiVA: 448).
        decoder_input: the vectors that Whisper's decoder reads, if there are `decoder_states`. `start_tokens`: the
            embedding of its start token, every time (LLaSM). `learned`: a parameter of the audio tower, a vector for
            each state (DiVA). Positions are added to both.
        encoder_context: the part of a piece of speech that the encoder sees, and the states that the connector reads.
            `full`: the encoder sees 30 s, padded with silence, as in Whisper's training; the connector reads the states
            of the speech. `padded`: the same, but silence counts as speech (LLaMA-Omni, SALMONN). `trimmed`: the
            encoder sees only the speech, which is faster on a CPU. `clip`: as `trimmed`, with mel features also
            computed only from the speech (Ultravox); they differ at the end of the speech.
        beats_config: a `BeatsConfig`: BEATs also encodes the speech, and the connector reads its states, after a layer
            norm, beside those of Whisper's encoder (SALMONN). None: only Whisper.

    Raises:
        UnusableConfig: an unknown context or decoder input, more states than the decoder has positions, learned input
            without a number of states, a start token that Whisper does not have, or a decoder with an encoder that sees
            only the speech or that has BEATs beside it.
    """

    model_type = "lsm"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "audio_config": WhisperConfig,
        "projector_config": LsmProjectorConfig,
        "text_config": PreTrainedConfig,
        "beats_config": BeatsConfig,
    }

    audio_config: Any = None
    projector_config: Any = None
    text_config: Any = None
    audio_token_id: int = None  # type: ignore[assignment]  # None takes the LLM's vocabulary size
    decoder_states: int | None = None
    decoder_input: str = "start_tokens"
    encoder_context: str = "full"
    beats_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.audio_config is None or isinstance(self.audio_config, dict):
            self.audio_config = WhisperConfig(**(self.audio_config or {}))
        if self.projector_config is None or isinstance(self.projector_config, dict):
            self.projector_config = LsmProjectorConfig(**(self.projector_config or {}))
        if self.text_config is None or isinstance(self.text_config, dict):
            text_config = dict(self.text_config or {})
            self.text_config = CONFIG_MAPPING[text_config.pop("model_type", "llama")](**text_config)
        if isinstance(self.beats_config, dict):
            self.beats_config = BeatsConfig(**self.beats_config)
        if self.audio_token_id is None:
            self.audio_token_id = self.text_config.get_text_config().vocab_size
        self._check_audio_tower()
        self.tie_word_embeddings = False  # whether embeddings are tied is up to the LLM
        super().__post_init__(**kwargs)

    @property
    def state_dim(self) -> int:
        """Width of the audio tower's states."""
        return int(self.audio_config.d_model + (self.beats_config.hidden_size if self.beats_config else 0))

    def _check_audio_tower(self) -> None:
        if self.encoder_context not in ENCODER_CONTEXTS:
            raise UnusableConfig(
                f"encoder_context {self.encoder_context!r} is unknown; choose one of: {', '.join(ENCODER_CONTEXTS)}"
            )
        if self.decoder_input not in DECODER_INPUTS:
            raise UnusableConfig(
                f"decoder_input {self.decoder_input!r} is unknown; choose one of: {', '.join(DECODER_INPUTS)}"
            )
        if self.decoder_states is None:
            if self.decoder_input == "learned":
                raise UnusableConfig("decoder_input 'learned' needs decoder_states, the number of vectors")
            return
        check_count("decoder_states", self.decoder_states)
        states, positions = self.decoder_states, self.audio_config.max_target_positions
        if states > positions:
            raise UnusableConfig(f"decoder_states {states}: this Whisper's decoder has {positions} positions")
        start, vocabulary = self.audio_config.decoder_start_token_id, self.audio_config.vocab_size
        if start is None or start >= vocabulary:
            raise UnusableConfig(
                f"decoder_states: this Whisper's start token {start} is not in its {vocabulary} tokens"
            )
        if self.encoder_context in SPEECH_ALONE:
            raise UnusableConfig(
                f"encoder_context {self.encoder_context!r} and decoder_states exclude each other (it reads 30 s): "
                "leave out one"
            )
        if self.beats_config is not None:
            raise UnusableConfig(
                "beats_config and decoder_states exclude each other (the decoder's states have no times): leave out one"
            )
