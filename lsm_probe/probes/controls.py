"""The control that a comparison of text and speech needs: the text LLM once more, its source as long as the speech.

Same responses, same positions: only the kind of source differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lsm_probe.data.sample import Sample
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.loading import load
from lsm_probe.probes.attention_result import AttentionResult

CONTROL = " at length of "
"""Stands in a control's name between the text LLM and the speech checkpoint."""


@dataclass(frozen=True)
class Control:
    """One more measurement.

    Attributes:
        checkpoint: what [`load`] takes.
        name: how its result is called.
        samples: those it is measured on.
        probing: keyword arguments of the probe that differ.
    """

    checkpoint: str
    name: str
    samples: Sequence[Sample]
    probing: dict[str, Any]

    def load(self, loading: dict[str, Any]) -> Checkpoint:
        return replace(load(self.checkpoint, **loading), name=self.name)


def length_controls(results: Sequence[AttentionResult], samples: Sequence[Sample]) -> Iterator[Control]:
    """Each text LLM at each speech checkpoint's source lengths, where they are not the same anyway."""
    for speech in (r for r in results if r.checkpoint["source"] == "speech"):
        lengths = speech.source_lengths()
        for text in (r for r in results if r.checkpoint["source"] == "text"):
            shared = set(text.ids) & set(lengths)
            if all(text.source_lengths()[i] == lengths[i] for i in shared):
                continue
            chosen = [sample for sample in samples if sample.id in shared]
            given = {"responses": text.responses(), "source_lengths": lengths}
            yield Control(text.name, f"{text.name}{CONTROL}{speech.name}", chosen, given)
