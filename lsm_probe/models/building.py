"""An LSM put together of pretrained parts, and the built-in checkpoints that are built so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, WhisperFeatureExtractor, WhisperModel

from lsm_probe import assets
from lsm_probe.assets.cache import sha256
from lsm_probe.errors import InputError
from lsm_probe.models import LsmConfig, LsmForConditionalGeneration, LsmProcessor, LsmProjectorConfig
from lsm_probe.models.builtin_arms import arm_file, builtin_arms, read_training
from lsm_probe.models.causal_llm import load_causal_llm
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.dates import with_date
from lsm_probe.models.devices import input_device
from lsm_probe.models.identification import identify
from lsm_probe.models.identity import ConnectorIdentity, EncoderIdentity, ModelIdentity, TrainingIdentity
from lsm_probe.models.llm_tokenizers import load_llm_tokenizer
from lsm_probe.models.pretrained import pretrained, pretrained_model
from lsm_probe.models.prompter import describe_prompt

UNTRAINED = "builtin:untrained"
BUILTIN_LSMS = (UNTRAINED, *(f"builtin:{name}" for name in builtin_arms()))
"""Names of the LSMs made from the embedded models."""


def build_lsm(
    encoder: str | Path,
    llm: str | Path,
    *,
    projector: LsmProjectorConfig | None = None,
    encoder_context: str = "full",
    decoder_states: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    template: str | None = None,
    date: str | None = None,
) -> Lsm:
    """Puts a pretrained Whisper and a pretrained LLM together with a new, seeded connector.

    Only the connector's weights are random; the pretrained weights are in memory once.

    Args:
        encoder: folder or hub name of a Whisper model of any size.
        llm: folder or hub name of a decoder-only causal LM.
        projector: the connector's configuration.
        encoder_context: what the encoder sees of a piece of speech, `full` or `trimmed`: see [`LsmConfig`].
        decoder_states: states taken from Whisper's decoder (LLaSM: 64); None takes its encoder's.
        seed: alone decides the connector's weights.
        dtype: of all weights.
        template: prompt template; the tokenizer's own chat template where it has one, else `vicuna`.
        date: as in [`load`].

    Raises:
        InputError: if either part cannot be loaded, the parts cannot be put together as asked, or the date is invalid.
    """
    tokenizer = with_date(load_llm_tokenizer(llm), date)
    language_model = load_causal_llm(str(llm), llm, dtype)
    whisper = _whisper(encoder, dtype, part=r"encoder\." if decoder_states is None else "")
    config = LsmConfig(
        audio_config=whisper.config,
        projector_config=projector or LsmProjectorConfig(),
        text_config=language_model.config,
        decoder_states=decoder_states,
        encoder_context=encoder_context,
    )
    config.dtype = dtype
    with torch.device("meta"):  # a skeleton: no memory, nothing drawn
        model = LsmForConditionalGeneration(config)
    tower = whisper.encoder if decoder_states is None else whisper
    model.audio_tower.load_state_dict(tower.state_dict(), assign=True)
    model.language_model = language_model
    model.draw_connector(seed)
    model.multi_modal_projector.to(dtype)
    model.generation_config = language_model.generation_config
    processor = LsmProcessor.for_model(config, pretrained(WhisperFeatureExtractor, encoder), tokenizer, template)
    parts: list[Any] = [model.audio_tower, model.multi_modal_projector]
    for part in parts:
        part.to(input_device(language_model))  # transformers puts quantised LLMs on a GPU by itself
    built = Lsm("untrained", model.eval(), processor)
    tower_weights = vars(identify(encoder, whisper.config))
    built.identity = ModelIdentity(
        model_type=config.model_type,
        encoder=EncoderIdentity(**tower_weights, context=encoder_context, decoder_states=decoder_states),
        llm=identify(llm, language_model.config),
        connector=ConnectorIdentity(settings=processor.projector, seed=seed, trained=False),
        **describe_prompt(built, str(llm), date),
    )
    return built


def build_builtin(name: str, *, dtype: torch.dtype, template: str | None = None, date: str | None = None) -> Lsm:
    """One of [`BUILTIN_LSMS`], the arguments as in [`build_lsm`]."""
    arm = name.removeprefix("builtin:")
    training = None if name == UNTRAINED else read_training(arm)
    settings: dict[str, Any] = {"dtype": dtype, "template": template, "date": date}
    if training is not None:
        settings |= {"projector": training.projector, "encoder_context": training.encoder_context}
    checkpoint = build_lsm(assets.speech_encoder(), assets.language_model(), **settings)
    checkpoint.name = name
    if training is not None:
        training.apply(checkpoint.model)
        # The seed of the connector is left out: its weights were replaced.
        checkpoint.identity = replace(
            checkpoint.identity,
            connector=ConnectorIdentity(settings=checkpoint.processor.projector, trained=True),
            training=TrainingIdentity(**training.arm, sha256=sha256(arm_file(arm))),
        )
    return checkpoint


def _whisper(name: str | Path, dtype: torch.dtype, part: str) -> Any:
    config = pretrained(AutoConfig, name)
    if config.model_type != "whisper":
        raise InputError(f"{name} is a {config.model_type!r} model: give a Whisper model of any size")
    return pretrained_model(WhisperModel, name, dtype, part=part)
