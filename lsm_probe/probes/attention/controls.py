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
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.runner.result import ProbeResult

CONTROL = " at length of "
"""Stands in a control's name between the text LLM and the first speech checkpoint it was made for."""


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
    """Each text LLM at each speech checkpoint's source lengths, where they are not the same anyway.

    Speech checkpoints with the same source lengths share one control; [`controls_for`] finds it for each of them.
    """
    given: dict[str, list[dict[str, int]]] = {}  # text LLM -> the lengths at which it is measured
    for speech in (r for r in results if r.checkpoint["source"] == "speech"):
        lengths = speech.source_lengths()
        for text in (r for r in results if r.checkpoint["source"] == "text"):
            wanted = {i: lengths[i] for i in text.ids if i in lengths}
            known = given.setdefault(text.name, [text.source_lengths()])
            if any(wanted.items() <= earlier.items() for earlier in known):
                continue
            known.append(wanted)
            chosen = [sample for sample in samples if sample.id in wanted]
            probing = {"responses": text.responses(), "source_lengths": lengths}
            yield Control(text.name, f"{text.name}{CONTROL}{speech.name}", chosen, probing)


def is_control(result: ProbeResult) -> bool:
    """Whether the result is that of a text LLM whose transcripts were repeated or cut to given lengths."""
    return "control" in result.checkpoint


def same_source_lengths(first: AttentionResult, second: AttentionResult) -> bool:
    """Whether the source of every sample that both hold has as many tokens in both."""
    one, other = first.source_lengths(), second.source_lengths()
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[i] == other[i] for i in shared)


def controls_for(results: Sequence[AttentionResult], checkpoint: AttentionResult) -> dict[str, AttentionResult]:
    """The controls at a checkpoint's source lengths, by the name of their text LLM, whomever they were made for.

    Of several of one text LLM it is that with most of the checkpoint's samples, then that made for the checkpoint.

    Args:
        results: among which controls are looked for.
        checkpoint: the result that is held against them.
    """
    found = [r for r in results if is_control(r) and same_source_lengths(r, checkpoint)]
    ids = set(checkpoint.ids)
    found.sort(key=lambda r: (len(ids.intersection(r.ids)), r.name.endswith(CONTROL + checkpoint.name)))
    return {r.name.partition(CONTROL)[0]: r for r in found}
