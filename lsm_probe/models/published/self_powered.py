"""The Self-Powered LSM (arXiv 2410.03798): Whisper, a Q-Former over windows, Vicuna.

In the released code, the window size follows the longest utterance of a batch. Here each utterance has its own window
size, so results do not depend on the batch. For a batch of one utterance, both are equal.
"""

from __future__ import annotations

from lsm_probe.errors import InputError
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.published.blsp import read_blsp_model
from lsm_probe.models.published.qformer import QFORMER_RULES, qformer_sizes
from lsm_probe.models.published.release import Release
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System


def _recognises(release: Release) -> bool:
    # BLSP has the same `architectures`, but with settings of convolutions.
    return release.config.get("architectures") == ["BlspModel"] and "speech_qformer_layer" in release.config


def _read(release: Release, parts: Parts) -> Reading:
    seconds = release.setting("second_per_frame")
    if (stride := release.config.get("second_stride", seconds)) != seconds:
        raise InputError(
            f"{release.folder} has windows of {seconds} s every {stride} s: only adjacent windows can be read"
        )
    sizes = qformer_sizes(release.tensors, release.folder)
    told = {
        "num_queries": release.setting("speech_qformer_token_num"),
        "num_hidden_layers": release.setting("speech_qformer_layer"),
    }
    projector = LsmProjectorConfig(window="length", window_seconds=seconds, drop_partial_window=True, **(sizes | told))
    return read_blsp_model(release, projector, QFORMER_RULES, "self_powered")


SYSTEMS.register("self_powered")(System("Self-Powered LSM", _recognises, _read))
