"""What the figures have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MARKERS = "osD^vPX"
"""One for each checkpoint, so that curves can be told apart without their colours."""


def legend_height(height: float, entries: Sequence[Any]) -> float:
    """Height of a figure (inches) whose legend below has room for up to three entries, made higher for more."""
    return height + 0.2 * max(0, len(entries) - 3)
