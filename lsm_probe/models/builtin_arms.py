"""The trained miniatures in the package, stored as differences from the embedded models.

They are two arms of `analyses/speech_anchor_bias`: SmolLM2-135M-Instruct behind Whisper tiny.en, trained through
adapters on spoken commands. Each is one file: the connector, and the LLM's changes as products of two thin matrices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration

_FOLDER = Path(str(resources.files("lsm_probe") / "models" / "arms"))
CONNECTOR = "multi_modal_projector."
TALL, WIDE = ".tall", ".wide"
"""Suffixes of the two factors of a low-rank weight change: `[out, rank]` and `[rank, in]`."""


@dataclass(frozen=True)
class Training:
    """The changes that training made to the embedded models.

    Attributes:
        projector: the connector's configuration.
        encoder_context: what the encoder sees, `full` or `trimmed`.
        tensors: the connector's weights, by name, and for each changed matrix of the LLM its factors.
        arm: its origin: study, arm, seed.
    """

    projector: LsmProjectorConfig
    encoder_context: str
    tensors: dict[str, Tensor]
    arm: dict[str, Any]

    @torch.no_grad()
    def apply(self, model: LsmForConditionalGeneration) -> None:
        """Changes the weights of an untrained LSM of the same parts; sums are taken in the model's dtype."""
        weights = dict(model.named_parameters())
        for name, tensor in self.tensors.items():
            if name.startswith(CONNECTOR):
                weights[name].copy_(tensor)
            elif name.endswith(TALL):
                matrix = name.removesuffix(TALL)
                change = tensor.float() @ self.tensors[matrix + WIDE].float()
                weights[matrix].add_(change.to(weights[matrix].dtype))


def builtin_arms() -> list[str]:
    """Names of the trained miniatures in the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def read_training(name: str) -> Training:
    """The training of this name; see [`builtin_arms`]."""
    with safe_open(arm_file(name), framework="pt") as file:
        about = json.loads(file.metadata()["lsm_probe"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is not a dict
    return Training(LsmProjectorConfig(**about["projector"]), about["encoder_context"], tensors, about["arm"])


def arm_file(name: str) -> Path:
    """The file that holds an arm."""
    return _FOLDER / f"{name}.safetensors"
