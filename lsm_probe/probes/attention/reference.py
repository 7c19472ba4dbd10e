"""The reference that a checkpoint's eta is compared with, and how much the two differ.

Speech is compared with a text LLM whose transcripts are made as long as the speech: responses and positions are the
same, and only the kind of source differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lsm_probe.data.sample import Sample
from lsm_probe.probes.attention.result import AttentionResult, has_same_source_lengths
from lsm_probe.runner.identity import Control
from lsm_probe.runner.measurement import ControlRun
from lsm_probe.runner.multiple_testing import SIGNIFICANT, corrected_p
from lsm_probe.runner.result import Curve, curve, layer_groups


def length_controls(results: Sequence[AttentionResult], samples: Sequence[Sample]) -> Iterator[ControlRun]:
    """Measure each text LLM at the source lengths of each speech checkpoint, unless this was already done.

    Speech checkpoints with the same source lengths share one control.
    """
    speech = [result for result in results if result.checkpoint.source == "speech"]
    known: dict[str, list[dict[str, int]]] = {}  # text LLM -> the lengths at which it is measured
    for checkpoint in speech:
        lengths = checkpoint.source_lengths()
        served = [other.name for other in speech if other is checkpoint or has_same_source_lengths(checkpoint, other)]
        served.sort(key=checkpoint.name.__ne__)  # the checkpoint itself first
        for text in (result for result in results if result.checkpoint.source == "text"):
            wanted = {i: lengths[i] for i in text.ids if i in lengths}
            measured = known.setdefault(text.name, [text.source_lengths()])
            if any(wanted.items() <= earlier.items() for earlier in measured):
                continue
            measured.append(wanted)
            chosen = [sample for sample in samples if sample.id in wanted]
            options = {"responses": text.responses(), "source_lengths": lengths, "source_length_of": served}
            yield ControlRun(text.name, Control(text.name, tuple(served)).name, chosen, options)


def last_group_eta(result: AttentionResult) -> Curve:
    """Eta averaged over the last of the six groups of layers, with its interval."""
    return curve(mean_of_last_group(result.eta().mean), mean_of_last_group(result.left_out_eta())).clipped(0, 1)


def last_layers(result: AttentionResult) -> tuple[int, int]:
    """First and last layer of the last of the six groups."""
    group = layer_groups(result.n_layers)[-1]
    return int(group[0]), int(group[-1])


def text_at_length(
    attention: Sequence[AttentionResult], text: AttentionResult, speech: AttentionResult
) -> AttentionResult | None:
    """The text LLM's control at a speech checkpoint's source lengths; the text LLM itself if these are the same; or
    None."""
    control = speech.find_controls(attention).get(text.name)
    if control is None and has_same_source_lengths(text, speech):
        return text
    return control


def reference_of(attention: Sequence[AttentionResult], result: AttentionResult) -> AttentionResult | None:
    """The result that a speech checkpoint's layers are compared with: the text LLM at the same source length, without a
    text LLM the first speech checkpoint. None for other checkpoints."""
    measured = [r for r in attention if not r.is_control]
    if result.checkpoint.source != "speech":
        return None
    text = next((r for r in measured if r.checkpoint.source == "text"), None)
    if text is not None:
        return text_at_length(attention, text, result)
    first = next(r for r in measured if r.checkpoint.source == "speech")
    return None if first is result else first


def differing(result: AttentionResult, reference: AttentionResult) -> list[int]:
    """By layer -1, 0 or 1: eta is below the reference, not shown to differ, above; p below 0.05 over all layers."""
    if result.n_layers != reference.n_layers:
        return [0] * result.n_layers
    result, reference = result.paired_with(reference)
    ratios = [instruction / (instruction + source) for instruction, source in (result.scores(), reference.scores())]
    p = corrected_p(ratios[0] - ratios[1], result.clusters, seed=result.seed)
    change = result.eta().mean - reference.eta().mean
    return np.where(p < SIGNIFICANT, np.sign(change), 0).astype(int).tolist()


def mean_of_last_group(values: Any) -> Any:
    """The mean over the last group of layers, the last axis: `[..., layers]` -> `[...]`."""
    return values[..., layer_groups(values.shape[-1])[-1]].mean(-1)
