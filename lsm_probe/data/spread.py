"""Selects samples of many utterances and many tasks."""

from __future__ import annotations

from collections.abc import Sequence

from lsm_probe.data.sample import Sample


def one_sample_an_utterance(samples: Sequence[Sample], utterances: int) -> list[Sample]:
    """One sample of each of the first utterances: the first sample of one, the second of the next, and so on."""
    return [turn[0] for turn in _turns(samples)[:utterances]]


def spread_over_utterances(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """Samples from as many utterances as possible: one sample of each, then a second of each, and so on."""
    turns = _turns(samples)
    rounds = range(max(map(len, turns), default=0))
    return [turn[n] for n in rounds for turn in turns if n < len(turn)][:limit]


def _turns(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each utterance, each list starting with a different one, so that all tasks appear early."""
    by_utterance: dict[str, list[Sample]] = {}
    for sample in samples:
        by_utterance.setdefault(sample.utterance, []).append(sample)
    return [own[i % len(own) :] + own[: i % len(own)] for i, own in enumerate(by_utterance.values())]
