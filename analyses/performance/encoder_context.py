"""Compare Whisper's encoder on the utterance alone (`encoder_context=trimmed`) with its padding to 30 s.

Usage: OMP_NUM_THREADS=1 python analyses/performance/encoder_context.py
Writes encoder_context.json: over the built-in utterances, the relative difference and the cosine of the valid
states (all, and the last 0.2 s), and the time of both.
"""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

import lsm_probe
from lsm_probe import assets
from lsm_probe.data.audio import read_audio
from lsm_probe.files import replacing

LAST = 10  # states of 20 ms


def main() -> None:
    samples = lsm_probe.read_manifest("builtin:probe")
    models = {
        context: lsm_probe.build_lsm(assets.speech_encoder(), assets.language_model(), encoder_context=context)
        for context in ("full", "trimmed")
    }
    processor = models["full"].processor
    rows = []
    for sample in samples:
        speech = processor.extract(read_audio(sample))
        states, seconds = {}, {}
        for context, checkpoint in models.items():
            model: Any = checkpoint.model
            began = time.perf_counter()
            found, lengths = model.encode_speech(**speech)
            seconds[context] = time.perf_counter() - began
            states[context] = found[0, : int(lengths[0])]
        rows.append({"id": sample.id, **_compare(states["full"], states["trimmed"]), "seconds": seconds})
    result = {
        "utterances": len(rows),
        "relative_difference": median(row["relative_difference"] for row in rows),
        "relative_difference_last_200_ms": median(row["last"] for row in rows),
        "relative_difference_before": median(row["before"] for row in rows),
        "cosine": median(row["cosine"] for row in rows),
        "times_as_fast": median(row["seconds"]["full"] / row["seconds"]["trimmed"] for row in rows[1:]),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("lsm-probe", "torch", "transformers")}
        | {"python": platform.python_version()},
        "rows": rows,
    }
    path = Path(__file__).with_suffix(".json")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1))


def _compare(full: torch.Tensor, trimmed: torch.Tensor) -> dict[str, float]:
    def difference(part: slice) -> float:
        return float((full[part] - trimmed[part]).norm() / full[part].norm())

    return {
        "relative_difference": difference(slice(None)),
        "last": difference(slice(-LAST, None)),
        "before": difference(slice(None, -LAST)),
        "cosine": float(torch.nn.functional.cosine_similarity(full.flatten(), trimmed.flatten(), dim=0)),
    }


if __name__ == "__main__":
    main()
