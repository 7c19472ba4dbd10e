"""Data for the tiny text LLM."""

import pytest

from lsm_probe.data.sample import Sample

WORDS = [
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"),
    *("while", "rain", "falls", "softly", "on", "old", "town"),
]


@pytest.fixture
def transcripts():
    """`transcripts(n)`: n samples of 2 to 12 words, text only."""

    def make(count):
        return [
            Sample(
                id=f"s{i}", instruction="unused", text=" ".join(WORDS[(i + k) % 15] for k in range(2 + i % 11)) + "."
            )
            for i in range(count)
        ]

    return make
