"""What one probed sample leaves behind, before samples become a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Record:
    """What one sample left behind.

    Attributes:
        sample: its row of `samples.jsonl`.
        utterance: key of the utterance it speaks of.
        arrays: what the probe measured, by name. Empty if the sample was left out.
        excluded: why it was left out, or None.
    """

    sample: dict[str, Any]
    utterance: str
    arrays: dict[str, np.ndarray]
    excluded: str | None = None
