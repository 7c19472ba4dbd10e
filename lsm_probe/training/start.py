"""The initial model of a stage."""

from __future__ import annotations

from pathlib import Path

from lsm_probe import assets
from lsm_probe.models.building import build_lsm
from lsm_probe.models.checkpoint_kinds import Lsm, require_lsm
from lsm_probe.models.loading import load
from lsm_probe.models.quantisation import check_dense
from lsm_probe.training.config import ModelSettings


def start_model(settings: ModelSettings, start: Path | None, seed: int) -> Lsm:
    """The LSM that a stage starts with, on CPU in float32: from the stage before, from a name, or newly built from
    parts.

    Raises:
        InputError: it cannot be loaded or built, or its weights are quantised.
    """
    checkpoint = _start_model(settings, start, seed)
    remedy = "quantised weights are not trained, under LoRA neither: give the model before its quantisation"
    check_dense(checkpoint.model, str(start or settings.start or settings.llm), remedy)
    return checkpoint


def _start_model(settings: ModelSettings, start: Path | None, seed: int) -> Lsm:
    name = start or settings.start
    if name is not None:
        checkpoint = load(name, device="cpu", dtype="float32", template=settings.template)
        return require_lsm(checkpoint, "give one, or model.encoder and model.llm", name=f"model.start={name}")
    builtin = {"builtin:encoder": assets.speech_encoder, "builtin:llm": assets.language_model}
    encoder, llm = (builtin[part]() if part in builtin else part for part in (settings.encoder, settings.llm))
    return build_lsm(
        encoder,
        llm,
        projector=settings.projector(),
        encoder_context=settings.encoder_context,
        decoder_states=settings.decoder_states,
        seed=seed,
        template=settings.template,
    )
