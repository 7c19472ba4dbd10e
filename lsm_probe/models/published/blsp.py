"""BLSP (arXiv 2309.00916): Whisper, three strided convolutions with a bottleneck, Llama 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

from lsm_probe.errors import InputError
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.pretrained import from_files
from lsm_probe.models.published.release import ROTARY, Release, Rule, rename
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System, eos_token_ids

_RULES: list[Rule] = [
    ROTARY,
    (r"whisper_model\.(.*)", r"audio_tower.\1"),
    (r"llama_model\.(.*)", r"language_model.\1"),
]
_CONNECTOR_RULES: list[Rule] = [
    (r"subsampler\.conv_layers\.(.*)", r"multi_modal_projector.convs.\1"),
    (r"adapter\.fc1\.weight", "multi_modal_projector.down.weight"),
    (r"adapter\.fc2\.weight", "multi_modal_projector.up.weight"),
    (r"speech_ln\.(.*)", r"multi_modal_projector.layer_norm.\1"),
]


def _recognises(release: Release) -> bool:
    # The Self-Powered LSM has the same `architectures`, but with settings of a Q-Former.
    return release.config.get("architectures") == ["BlspModel"] and "conv_kernel_sizes" in release.config


def _read(release: Release, parts: Parts) -> Reading:
    if (kernels := release.setting("conv_kernel_sizes")) != "5,5,5":
        raise InputError(f"{release.folder} has convolutions of sizes {kernels}: only 5,5,5 can be read")
    projector = LsmProjectorConfig(connector="conv", hidden_size=release.setting("adapter_inner_dim"))
    return read_blsp_model(release, projector, _CONNECTOR_RULES, "blsp")


def read_blsp_model(
    release: Release, projector: LsmProjectorConfig, connector_rules: Sequence[Rule], template: str
) -> Reading:
    """Reads a release of the class `BlspModel`, which holds Whisper's encoder, a connector and a Llama.

    Args:
        release: the release.
        projector: configuration of the connector.
        connector_rules: renaming rules for the tensors of the connector.
        template: name of the prompt template.

    Raises:
        InputError: a setting is missing, or no valid configuration can be made from it.
    """
    text_config = release.part_config(LlamaConfig, release.setting("llama_config"))
    config = LsmConfig(
        audio_config=release.part_config(WhisperConfig, release.setting("whisper_config")),
        projector_config=projector,
        text_config=text_config,
    )
    tokenizer = release.tokenizer()

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        return rename(release.tensors, [*_RULES, *connector_rules], release.folder)

    return Reading(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        feature_extractor=from_files(WhisperFeatureExtractor, release.folder),
        template=template,
        eos_token_ids=eos_token_ids(release, text_config, tokenizer),
    )


SYSTEMS.register("blsp")(System("BLSP", _recognises, _read))
