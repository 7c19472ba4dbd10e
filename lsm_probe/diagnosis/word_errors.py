"""Word errors of single responses."""

from __future__ import annotations

import warnings
from functools import lru_cache

from lsm_probe.evaluation.metrics import word_error_rate
from lsm_probe.evaluation.scoring import truncate


@lru_cache(maxsize=100_000)
def word_errors(reference: str, response: str, language: str | None) -> tuple[float, float]:
    """Word errors of a response, and number of words in its reference. Cached, because normalising a text takes
    time."""
    with warnings.catch_warnings(action="ignore"):  # the evaluation warns about texts that are hard to score
        errors, words = word_error_rate([reference], [truncate(response)], [language]).counts[0]
    return float(errors), float(words)
