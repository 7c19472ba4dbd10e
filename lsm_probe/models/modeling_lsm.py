"""The large speech-text model: Whisper encoder -> connector -> LLM, in the shape of transformers' audio LLMs."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import TransformersKwargs

from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import CONNECTORS, Connector, num_speech_tokens
from lsm_probe.models.kv_cache import CACHE
from lsm_probe.models.speech_encoder import make_audio_tower, num_states, run_audio_tower

_LLM_KEYWORDS = {
    "return_dict",
    "cache_position",
    *TransformersKwargs.__annotations__,
    *signature(ForCausalLMLoss).parameters,
}
"""Arguments that LLMs in transformers accept but `forward` does not name: for decorators, attention and loss."""

FEATURES = ("input_features", "input_features_mask", "beats_features", "beats_frames")
"""The model's inputs that hold speech features from the processor; only models with BEATs have the last two."""
SPEECH_INPUTS = (*FEATURES, "speech_states", "speech_lengths")
"""The model's inputs that hold speech, as features or as states from the audio tower."""


class LsmForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Answers a text instruction about speech.

    `input_ids` holds `config.audio_token_id` once for each speech token. The speech comes as log-mel features of
    30 s pieces (`input_features`, `[pieces, mel_bins, 3000]`, all utterances of the batch one after another) with
    `input_features_mask` (`[pieces, 3000]`, 1 for the 10 ms mel frames that are speech and not padding); or as what
    the audio tower made of them (`speech_states`, `[pieces, max_states, d]`, with `speech_lengths`, `[pieces]`), which
    training with a frozen tower computes once: see [`encode_speech`].

    Where BEATs is part of the tower (`config.beats_config`), its features come beside the log-mel features:
    `beats_features`, `[pieces, frames, 128]`, padded, and `beats_frames`, `[pieces]`, how many each piece has.

    An audio tower of which no parameter requires a gradient stays in evaluation mode in training, and builds no graph.

    The LLM is a whole causal LM, head included, so that whatever it does to its logits (scaling, caps) is kept.
    """

    config: LsmConfig
    config_class = LsmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules: set[str] | list[str] = ["WhisperEncoderLayer", "BeatsLayer"]  # noqa: RUF012  # transformers' protocol
    _skip_keys_device_placement = [CACHE]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LsmConfig):
        super().__init__(config)
        self.audio_tower = make_audio_tower(config)
        self.multi_modal_projector = _make_connector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()
        # post_init gathers what the parts name, Whisper's decoder layer too where only the encoder is there, and
        # Accelerate's FSDP refuses a model that lacks a layer it names.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = present.intersection(self._no_split_modules)

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Connector):
            module.init_own_parameters(self.config.projector_config)

    def draw_connector(self, seed: int) -> None:
        """Replaces the connector by a new one whose weights depend on `seed` alone (float32, CPU)."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPUs' too
            self.multi_modal_projector = _make_connector(self.config)
            self.multi_modal_projector.apply(self._initialize_weights)

    def train(self, mode: bool = True) -> LsmForConditionalGeneration:
        super().train(mode)
        if not self._tower_learns():
            self.audio_tower.eval()
        return self

    def _tower_learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.audio_tower.parameters())

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        return self.language_model.get_decoder(*args, **kwargs)

    def get_audio_features(
        self,
        input_features: Tensor,
        input_features_mask: Tensor,
        beats_features: Tensor | None = None,
        beats_frames: Tensor | None = None,
    ) -> Tensor:
        """Encodes speech, as in [`encode_speech`], to the speech tokens of all pieces in order, `[tokens, llm_dim]`.

        A piece becomes [`num_speech_tokens`] of its valid states.
        """
        encoded = self.encode_speech(input_features, input_features_mask, beats_features, beats_frames)
        return self._connect(*encoded)

    def encode_speech(
        self,
        input_features: Tensor,
        input_features_mask: Tensor,
        beats_features: Tensor | None = None,
        beats_frames: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Runs the audio tower: the part of [`get_audio_features`] before the connector.

        Args:
            input_features: log-mel features, `[pieces, mel_bins, 3000]`.
            input_features_mask: `[pieces, 3000]`, 1 where a mel frame is speech.
            beats_features: what BEATs reads, `[pieces, frames, 128]`, of a tower with BEATs.
            beats_frames: frames of each piece, `[pieces]`.

        Returns:
            `speech_states` `[pieces, max_states, d]` and `speech_lengths` `[pieces]`. States beyond a piece's length
            mean nothing and may be left out.

        Raises:
            ValueError: what BEATs reads is missing, or was given to a tower without it.
        """
        tower, mel_frames = self.audio_tower, input_features_mask.sum(-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._tower_learns()):
            features = input_features.to(tower.dtype)
            states = run_audio_tower(tower, self.config, features, mel_frames, beats_features, beats_frames)
        return states, num_states(mel_frames, self.config.decoder_states)

    def _connect(self, speech_states: Tensor, speech_lengths: Tensor) -> Tensor:
        dtype = next(self.multi_modal_projector.parameters()).dtype
        return self.multi_modal_projector(speech_states.to(dtype), speech_lengths)

    def get_placeholder_mask(self, input_ids: Tensor, audio_features: Tensor) -> Tensor:
        """Marks the positions of speech tokens, `[batch, tokens]`.

        Raises:
            ValueError: if `input_ids` holds another number of placeholders than there are speech tokens.
        """
        mask = input_ids == self.config.audio_token_id
        if (found := int(mask.sum())) != len(audio_features):
            raise ValueError(f"{found} audio placeholders in input_ids, but {len(audio_features)} speech tokens")
        return mask

    def embed(
        self,
        input_ids: Tensor,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        speech_states: Tensor | None = None,
        speech_lengths: Tensor | None = None,
        speech: Tensor | None = None,
        beats_features: Tensor | None = None,
        beats_frames: Tensor | None = None,
    ) -> Tensor:
        """Embeds text and speech for the LLM: `[batch, tokens, llm_dim]`.

        The speech is given as `input_features` (of a tower with BEATs also `beats_features`) or as `speech_states`,
        each with its lengths, or as the speech tokens themselves (`speech`, `[tokens, llm_dim]`). Without any, every
        token must be a text token.

        Raises:
            ValueError: both were given, or one without its lengths; or as [`encode_speech`].
        """
        # The placeholder is outside the vocabulary: any token may stand in for it before it is overwritten.
        text_ids = input_ids.masked_fill(input_ids == self.config.audio_token_id, 0)
        embeds: Tensor = self.get_input_embeddings()(text_ids)
        if input_features is not None and speech_states is not None:
            raise ValueError("give input_features or speech_states, not both")
        if (input_features is None) != (input_features_mask is None):
            raise ValueError("give input_features and input_features_mask together: padding is not speech")
        if (speech_states is None) != (speech_lengths is None):
            raise ValueError("give speech_states and speech_lengths together: padding is not speech")
        if input_features is None and (beats_features is not None or beats_frames is not None):
            raise ValueError("give beats_features and beats_frames with input_features, or not at all")
        if input_features is not None and input_features_mask is not None:
            audio = self.get_audio_features(input_features, input_features_mask, beats_features, beats_frames)
        elif speech_states is not None and speech_lengths is not None:
            audio = self._connect(speech_states, speech_lengths)
        else:
            audio = embeds.new_empty(0, embeds.shape[-1]) if speech is None else speech
        mask = self.get_placeholder_mask(input_ids, audio).unsqueeze(-1)
        return embeds.masked_scatter(mask, audio.to(embeds))

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        speech_states: Tensor | None = None,
        speech_lengths: Tensor | None = None,
        beats_features: Tensor | None = None,
        beats_frames: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the LLM on text and speech; `kwargs` (labels, a key-value cache, ...) go to it unchanged.

        Most LLMs of transformers ignore keywords that they do not know, so these are refused here.

        Positions count the tokens that are not padding, so that an LLM with learned positions (GPT-2) sees the same
        prompt however it is padded.

        Returns:
            The LLM's own output: `logits` `[batch, tokens, vocab_size]`, and `loss` if `labels` were given.

        Raises:
            TypeError: the LLM knows no such keyword.
        """
        known = signature(self.language_model.forward).parameters
        if unknown := sorted(set(kwargs).difference(known, _LLM_KEYWORDS)):
            raise TypeError(f"{type(self.language_model).__name__} takes no {', '.join(unknown)}")
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            speech = (input_features, input_features_mask, speech_states, speech_lengths)
            inputs_embeds = self.embed(input_ids, *speech, beats_features=beats_features, beats_frames=beats_frames)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        if "position_ids" in known:
            kwargs["position_ids"] = position_ids
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(  # type: ignore[override]  # the speech inputs are keyword-only, as everywhere
        self, input_ids: Any, *, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        speech = {name: kwargs.pop(name, None) for name in SPEECH_INPUTS}
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]  # self is a model, which mypy can't see
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            # Later steps read the speech from the key-value cache.
            inputs |= speech
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeats each prompt for beams or several answers, and the pieces of its speech as one block.

        transformers would repeat each piece by itself, which mixes up the pieces of speech longer than 30 s.
        """
        speech = {name: kwargs.pop(name, None) for name in SPEECH_INPUTS}
        if expand_size > 1:
            speech = self._repeat_speech(input_ids, speech, expand_size)
        input_ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]  # as above
            expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs | speech

    def _repeat_speech(self, input_ids: Tensor, speech: dict[str, Any], times: int) -> dict[str, Any]:
        lengths, mask = speech["speech_lengths"], speech["input_features_mask"]
        if lengths is None and mask is not None:
            lengths = num_states(mask.sum(-1), self.config.decoder_states)
        if lengths is None:
            return speech
        made = [num_speech_tokens(self.config.projector_config, length) for length in lengths.tolist()]
        wanted = (input_ids == self.config.audio_token_id).sum(-1).cumsum(0)
        prompt = torch.searchsorted(wanted, torch.tensor(made, device=wanted.device).cumsum(0))
        order = torch.cat([(prompt == i).nonzero()[:, 0].repeat(times) for i in range(len(wanted))])
        return {name: None if tensor is None else tensor[order] for name, tensor in speech.items()}


def _make_connector(config: LsmConfig) -> Connector:
    """A connector with weights as torch draws them."""
    llm_dim = config.text_config.get_text_config().hidden_size  # of the LLM inside one that sees, too (Gemma 3)
    widths = {"encoder_dim": config.state_dim, "llm_dim": llm_dim}
    return CONNECTORS[config.projector_config.connector](config.projector_config, **widths)
