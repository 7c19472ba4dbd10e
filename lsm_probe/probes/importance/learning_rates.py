"""Learning rates by layer: the more important a layer is for text, the slower it learns (arXiv 2509.23755)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.probes.importance.result import ImportanceResult


def check_strength(strength: float) -> None:
    """Raises InputError unless the strength is from 0 to below 1."""
    if not 0 <= strength < 1:
        raise InputError(f"--strength {strength} is out of range: give a number from 0 to below 1")


def layer_rates(result: ImportanceResult, strength: float) -> list[float]:
    """Rates as multiples of the base rate, by layer: `1 - strength * minmax(I_layer)`.

    I_layer is the sum of importance over the layer's weight matrices. Use the textual importance of the base LLM.

    Raises:
        InputError: the strength is not from 0 to below 1.
    """
    check_strength(strength)
    by_layer = result.by_layer().mean
    spread = np.ptp(by_layer)
    scaled = (by_layer - by_layer.min()) / spread if spread else np.zeros_like(by_layer)
    return [float(f"{rate:.6g}") for rate in 1 - strength * scaled]


def write_rates(result: ImportanceResult, strength: float, path: Path) -> None:
    """Writes the input of the training strategy `layerwise_lr`: the rates, and the results they come from."""
    content: dict[str, Any] = {
        "rates": layer_rates(result, strength),
        "strength": strength,
        "importance": {
            "checkpoint": result.name,
            "data": result.data.to_dict(),
            "conventions": result.conventions.to_dict(),
            "n_samples": len(result.samples),
        },
    }
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
