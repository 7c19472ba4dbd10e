"""What training changed in an LSM, as one small file: the connector, and low-rank factors of the LLM's changes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration

CONNECTOR = "multi_modal_projector."
_LLM = "language_model."
TALL, WIDE = ".tall", ".wide"
"""Suffixes of the two factors of a low-rank weight change: `[out, rank]` and `[rank, in]`."""
_HEADER = "lsm_probe"


@dataclass(frozen=True)
class Training:
    """The changes that training made to an untrained LSM.

    Attributes:
        projector: the connector's configuration.
        encoder_context: what the encoder sees, `full` or `trimmed`.
        tensors: the connector's weights, by name, and for each changed matrix of the LLM its factors.
        arm: its origin: study, arm, seed; empty if it belongs to no study.
    """

    projector: LsmProjectorConfig
    encoder_context: str
    tensors: dict[str, Tensor]
    arm: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: LsmForConditionalGeneration, llm: nn.Module, rank: int, arm: dict[str, Any] | None = None
    ) -> tuple[Self, float]:
        """The training that made `model` from the text LLM `llm`, in bfloat16.

        Args:
            model: the trained LSM, float32.
            llm: its LLM before training, float32.
            rank: of the factors of a change.
            arm: see the attributes.

        Returns:
            The training, and the largest share of a change's norm that its factors miss, before rounding to bfloat16.
        """
        before = dict(llm.named_parameters())
        tensors: dict[str, Tensor] = {}
        missed = [0.0]
        for name, weight in model.named_parameters():
            if name.startswith(CONNECTOR):
                tensors[name] = weight
            elif name.startswith(_LLM) and not torch.equal(weight, before[name.removeprefix(_LLM)]):
                change = weight - before[name.removeprefix(_LLM)]
                tensors[name + TALL], tensors[name + WIDE], share = _factors(change, rank)
                missed.append(share)
        rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
        config = model.config
        return cls(config.projector_config, config.encoder_context, rounded, arm or {}), max(missed)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what [`save`] wrote."""
        with safe_open(file, framework="pt") as stored:
            about = json.loads(stored.metadata()[_HEADER])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  # it is not a dict
        return cls(LsmProjectorConfig(**about["projector"]), about["encoder_context"], tensors, about.get("arm", {}))

    def save(self, file: Path) -> None:
        """Write one safetensors file; its metadata hold what is not a tensor."""
        about = {"projector": self.projector.to_diff_dict(), "encoder_context": self.encoder_context, "arm": self.arm}
        save_file(self.tensors, file, metadata={_HEADER: json.dumps(about)})

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


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """`[out, rank]`, `[rank, in]`, and the share of the change's norm that their product misses."""
    tall, scales, wide = torch.linalg.svd(change, full_matrices=False)
    root = scales[:rank].sqrt()
    return tall[:, :rank] * root, root[:, None] * wide[:rank], float(scales[rank:].norm() / scales.norm())
