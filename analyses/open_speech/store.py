"""Stores what training changed in the embedded models as one small file, and makes an LSM of it again.

    python analyses/open_speech/store.py pack runs/open/model analyses/open_speech/listen.safetensors 6
    python analyses/open_speech/store.py unpack analyses/open_speech/listen.safetensors runs/start

The file holds the connector, and for each changed matrix of the LLM two thin factors of the given rank, in bfloat16.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lsm_probe
from lsm_probe import assets
from lsm_probe.models.stored_training import Training


def pack(folder: Path, file: Path, rank: int) -> None:
    trained, llm = (lsm_probe.load(name, device="cpu", dtype="float32") for name in (folder, "builtin:llm"))
    training, missed = Training.of(trained.model, llm.model, rank)
    training.save(file)
    print(f"at most {missed:.1e} of a change is missed, {file.stat().st_size / 1e6:.1f} MB")


def unpack(file: Path, folder: Path) -> None:
    training = Training.read(file)
    settings = {"projector": training.projector, "encoder_context": training.encoder_context}
    lsm = lsm_probe.build_lsm(assets.speech_encoder(), assets.language_model(), **settings)
    training.apply(lsm.model)
    lsm.save(folder)


if __name__ == "__main__":
    command, source, target, *rank = sys.argv[1:]
    if command == "pack":
        pack(Path(source), Path(target), int(rank[0]))
    else:
        unpack(Path(source), Path(target))
