"""The large speech-text model: Whisper encoder -> connector -> LLM, in the shape of transformers' audio LLMs."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import CONNECTORS, WindowQFormer, encoder_frames, num_speech_tokens


class LsmPreTrainedModel(PreTrainedModel):
    config_class = LsmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["WhisperEncoderLayer"]  # noqa: RUF012  # a plain list is transformers' protocol
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WindowQFormer):
            module.query.normal_(0.0, self.config.projector_config.initializer_range)


class LsmForConditionalGeneration(LsmPreTrainedModel, GenerationMixin):
    """Answers a text instruction about speech.

    `input_ids` holds `config.audio_token_id` once for each speech token. The speech comes as log-mel features of
    30 s pieces (`input_features`, `[pieces, mel_bins, 3000]`, all utterances of the batch one after another) with
    `input_features_mask` (`[pieces, 3000]`, 1 for the 10 ms mel frames that are speech and not padding).

    The LLM is a whole causal LM, head included, so that whatever it does to its logits (scaling, caps) is kept.
    """

    def __init__(self, config: LsmConfig):
        super().__init__(config)
        self.audio_tower = WhisperEncoder(config.audio_config)
        self.multi_modal_projector = CONNECTORS[config.projector_config.connector](
            config.projector_config,
            encoder_dim=config.audio_config.d_model,
            llm_dim=config.text_config.hidden_size,
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

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

    def get_audio_features(self, input_features: Tensor, input_features_mask: Tensor) -> Tensor:
        """Encodes speech to speech tokens.

        Args:
            input_features: log-mel features, `[pieces, mel_bins, 3000]`.
            input_features_mask: `[pieces, 3000]`, 1 where a mel frame is speech.

        Returns:
            `[tokens, llm_dim]`, the tokens of all pieces in order; how many each piece gives is
            [`num_speech_tokens`] of its valid encoder frames.
        """
        dtype = self.audio_tower.conv1.weight.dtype
        frames = self.audio_tower(input_features.to(dtype)).last_hidden_state
        lengths = encoder_frames(input_features_mask.sum(-1))
        return self.multi_modal_projector(frames, lengths)

    def get_placeholder_mask(self, input_ids: Tensor, audio_features: Tensor) -> Tensor:
        """Marks the positions of speech tokens, `[batch, tokens]`.

        Raises:
            ValueError: if `input_ids` holds another number of placeholders than there are speech tokens.
        """
        mask = input_ids == self.config.audio_token_id
        if int(mask.sum()) != len(audio_features):
            raise ValueError(
                f"{int(mask.sum())} audio placeholders in input_ids, but {len(audio_features)} speech tokens"
            )
        return mask

    def embed(
        self,
        input_ids: Tensor,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
    ) -> Tensor:
        """Embeds text and speech for the LLM: `[batch, tokens, llm_dim]`.

        Without `input_features` every token must be a text token.
        """
        # The placeholder is outside the vocabulary: any token may stand in for it before it is overwritten.
        text_ids = input_ids.masked_fill(input_ids == self.config.audio_token_id, 0)
        embeds: Tensor = self.get_input_embeddings()(text_ids)
        if input_features is None:
            audio = embeds.new_empty(0, embeds.shape[-1])
        else:
            if input_features_mask is None:
                raise ValueError("input_features needs its input_features_mask: padding is not speech")
            audio = self.get_audio_features(input_features, input_features_mask)
        mask = self.get_placeholder_mask(input_ids, audio).unsqueeze(-1)
        return embeds.masked_scatter(mask, audio.to(embeds.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the LLM on text and speech; `kwargs` (labels, past_key_values, ...) go to it unchanged.

        Positions count the tokens that are not padding, so that an LLM with learned positions (GPT-2) sees the same
        prompt however it is padded.

        Returns:
            The LLM's own output: `logits` `[batch, tokens, vocab_size]`, and `loss` if `labels` were given.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self.embed(input_ids, input_features, input_features_mask)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        if "position_ids" in signature(self.language_model.forward).parameters:
            kwargs["position_ids"] = position_ids
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(  # type: ignore[override]  # the speech inputs are keyword-only, as everywhere
        self,
        input_ids: Any,
        *,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]  # self is a model, which mypy can't see
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            # Later steps read the speech from the key-value cache.
            inputs["input_features"] = input_features
            inputs["input_features_mask"] = input_features_mask
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeats each prompt for beams or several answers, and the pieces of its speech as one block.

        transformers would repeat each piece by itself, which mixes up the pieces of speech longer than 30 s.
        """
        if input_features is not None and input_features_mask is not None and expand_size > 1:
            config = self.config.projector_config
            made = [num_speech_tokens(config, int(n)) for n in encoder_frames(input_features_mask.sum(-1))]
            wanted = (input_ids == self.config.audio_token_id).sum(-1).cumsum(0)
            prompt = torch.searchsorted(wanted, torch.tensor(made, device=wanted.device).cumsum(0))
            order = torch.cat([(prompt == i).nonzero()[:, 0].repeat(expand_size) for i in range(len(wanted))])
            input_features, input_features_mask = input_features[order], input_features_mask[order]
        input_ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]  # as above
            expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs | {"input_features": input_features, "input_features_mask": input_features_mask}
