"""Pack a trained arm into the file that the package ships.

    python analyses/speech_anchor_bias/pack.py runs/speech_anchor_bias/vanilla_asr-0 vanilla_asr

Two adapters of rank 4 (transcription stage, then the arm's own stage) give a change of rank 8. The factorisation
recovers this change up to float32 rounding. The factors and the connector are then rounded to bfloat16.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lsm_probe
from lsm_probe.models.builtin_arms import arm_file
from lsm_probe.models.stored_training import Training

RANK = 8


def main(folder: Path, name: str) -> None:
    arm, _, seed = folder.name.rpartition("-")
    trained, llm = (lsm_probe.load(ckpt, device="cpu", dtype="float32") for ckpt in (folder, "builtin:llm"))
    origin = {"study": "speech_anchor_bias", "arm": arm, "seed": int(seed)}
    training, missed = Training.of(trained.model, llm.model, RANK, origin)
    training.save(arm_file(name))
    print(f"at most {missed:.1e} of a change is missed, {arm_file(name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
