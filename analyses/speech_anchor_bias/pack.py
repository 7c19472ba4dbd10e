"""Pack a trained arm into the file that the package ships.

    python analyses/speech_anchor_bias/pack.py runs/speech_anchor_bias/vanilla_asr-0 vanilla_asr

Two adapters of rank 4 (transcription stage, then the arm's own stage) give a change of rank 8. The factorisation
recovers this change up to float32 rounding. The factors and the connector are then rounded to bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import lsm_probe
from lsm_probe.models.builtin_arms import CONNECTOR, TALL, WIDE, arm_file

RANK = 8
LLM = "language_model."


def factors(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """`[out, RANK]`, `[RANK, in]`, and the share of the change's norm that they miss."""
    tall, scales, wide = torch.linalg.svd(change, full_matrices=False)
    missed = float(scales[RANK:].norm() / scales.norm())
    root = scales[:RANK].sqrt()
    return tall[:, :RANK] * root, root[:, None] * wide[:RANK], missed


def main(folder: Path, name: str) -> None:
    trained = lsm_probe.load(folder)
    before = dict(lsm_probe.load("builtin:llm").model.named_parameters())
    tensors, missed = {}, []
    for key, weight in trained.model.named_parameters():
        if key.startswith(CONNECTOR):
            tensors[key] = weight.detach()
        elif key.startswith(LLM) and not torch.equal(weight, before[key.removeprefix(LLM)]):
            change = (weight - before[key.removeprefix(LLM)]).detach()
            tensors[key + TALL], tensors[key + WIDE], lost = factors(change)
            missed.append(lost)
    config = trained.model.config
    arm, _, seed = folder.name.rpartition("-")
    about = {
        "projector": config.projector_config.to_diff_dict(),
        "encoder_context": config.encoder_context,
        "arm": {"study": "speech_anchor_bias", "arm": arm, "seed": int(seed)},
    }
    tensors = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in tensors.items()}
    save_file(tensors, arm_file(name), metadata={"lsm_probe": json.dumps(about)})
    size = arm_file(name).stat().st_size / 1e6
    print(f"{len(missed)} matrices, at most {max(missed):.1e} of a change missed, {size:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
