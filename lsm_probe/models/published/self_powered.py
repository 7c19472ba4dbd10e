"""The Self-Powered LSM (arXiv 2410.03798): Whisper, a Q-Former over windows, Vicuna.

In its released code the window follows the longest utterance of a batch; here each utterance has its own, so that
results do not depend on the batch. The two are equal for one utterance at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

from lsm_probe.errors import InputError
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.pretrained import from_files
from lsm_probe.models.published.qformer import QFORMER_RULES, qformer_sizes
from lsm_probe.models.published.release import ROTARY, Release, Rule, rename
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System, eos_token_ids

_RULES: list[Rule] = [
    ROTARY,
    (r"whisper_model\.(.*)", r"audio_tower.\1"),
    (r"llama_model\.(.*)", r"language_model.\1"),
    *QFORMER_RULES,
]


def _recognises(release: Release) -> bool:
    # BLSP has the same `architectures`, and settings of convolutions.
    return release.config.get("architectures") == ["BlspModel"] and "speech_qformer_layer" in release.config


def _read(release: Release, parts: Parts) -> Reading:
    seconds = release.setting("second_per_frame")
    if (stride := release.config.get("second_stride", seconds)) != seconds:
        raise InputError(
            f"{release.folder} has windows of {seconds} s every {stride} s: only windows side by side can be read"
        )
    sizes = qformer_sizes(release.tensors, release.folder)
    told = {
        "num_queries": release.setting("speech_qformer_token_num"),
        "num_hidden_layers": release.setting("speech_qformer_layer"),
    }
    text_config = release.part_config(LlamaConfig, release.setting("llama_config"))
    config = LsmConfig(
        audio_config=release.part_config(WhisperConfig, release.setting("whisper_config")),
        projector_config=LsmProjectorConfig(
            window="length", window_seconds=seconds, drop_partial_window=True, **(sizes | told)
        ),
        text_config=text_config,
    )

    tokenizer = release.tokenizer()

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        return rename(release.tensors, _RULES, release.folder)

    return Reading(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        feature_extractor=from_files(WhisperFeatureExtractor, release.folder),
        template="self_powered",
        eos_token_ids=eos_token_ids(release, text_config, tokenizer),
    )


SYSTEMS.register("self_powered")(System("Self-Powered LSM", _recognises, _read))
