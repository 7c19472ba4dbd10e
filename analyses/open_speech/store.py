"""Stores what training changed in the embedded models as one small file, and makes an LSM of it again.

    python analyses/open_speech/store.py pack runs/open/model analyses/open_speech/listen.safetensors 6
    python analyses/open_speech/store.py unpack analyses/open_speech/listen.safetensors runs/start

The file holds the connector, and for each changed matrix of the LLM two thin factors of the given rank, in bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lsm_probe
from lsm_probe import assets
from lsm_probe.models.builtin_arms import CONNECTOR, TALL, WIDE, Training
from lsm_probe.models.connectors import LsmProjectorConfig

LLM = "language_model."


def pack(folder: Path, file: Path, rank: int) -> None:
    trained = lsm_probe.load(folder, device="cpu", dtype="float32").model
    before = dict(lsm_probe.load("builtin:llm", device="cpu", dtype="float32").model.named_parameters())
    tensors, missed = {}, []
    for key, weight in trained.named_parameters():
        if key.startswith(CONNECTOR):
            tensors[key] = weight.detach()
        elif key.startswith(LLM) and not torch.equal(weight, before[key.removeprefix(LLM)]):
            change = (weight - before[key.removeprefix(LLM)]).detach()
            tall, scales, wide = torch.linalg.svd(change, full_matrices=False)
            missed.append(float(scales[rank:].norm() / scales.norm()))
            root = scales[:rank].sqrt()
            tensors |= {key + TALL: tall[:, :rank] * root, key + WIDE: root[:, None] * wide[:rank]}
    config = trained.config
    about = {"projector": config.projector_config.to_diff_dict(), "encoder_context": config.encoder_context}
    tensors = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in tensors.items()}
    save_file(tensors, file, metadata={"lsm_probe": json.dumps(about)})
    print(f"{len(missed)} matrices, at most {max(missed):.1e} of a change missed, {file.stat().st_size / 1e6:.1f} MB")


def unpack(file: Path, folder: Path) -> None:
    with safe_open(file, framework="pt") as stored:
        about = json.loads(stored.metadata()["lsm_probe"])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  # it is no dict
    projector = LsmProjectorConfig(**about["projector"])
    context = about["encoder_context"]
    lsm = lsm_probe.build_lsm(
        assets.speech_encoder(), assets.language_model(), projector=projector, encoder_context=context
    )
    Training(projector, context, tensors, {}).apply(lsm.model)
    lsm.save(folder)


if __name__ == "__main__":
    command, source, target, *rank = sys.argv[1:]
    if command == "pack":
        pack(Path(source), Path(target), int(rank[0]))
    else:
        unpack(Path(source), Path(target))
