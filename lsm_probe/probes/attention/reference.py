"""What eta of a checkpoint is compared with, and by how much the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lsm_probe.probes.attention.result import AttentionResult, has_same_source_lengths
from lsm_probe.runner.multiple_testing import SIGNIFICANT, corrected_p
from lsm_probe.runner.result import Curve, Floats, curve, layer_groups


def last_group_eta(result: AttentionResult) -> Curve:
    """Eta averaged over the last of the six groups of layers, with its interval."""
    return curve(mean_of_last_group(result.eta().mean), mean_of_last_group(result.resampled_eta()))


def last_layers(result: AttentionResult) -> tuple[int, int]:
    """First and last layer of that group."""
    group = layer_groups(result.n_layers)[-1]
    return int(group[0]), int(group[-1])


def paired(first: AttentionResult, second: AttentionResult) -> tuple[AttentionResult, AttentionResult]:
    """Both on the samples that both have, drawn alike."""
    other = set(second.ids)
    shared = [sample for sample in first.ids if sample in other]
    return first.subset(shared), replace(second.subset(shared), seed=first.seed)


def text_at_length(
    attention: Sequence[AttentionResult], text: AttentionResult, speech: AttentionResult
) -> AttentionResult | None:
    """The text LLM's control at a speech checkpoint's source lengths, itself where they are the same, or None."""
    control = speech.find_controls(attention).get(text.name)
    if control is None and has_same_source_lengths(text, speech):
        return text
    return control


def reference_of(attention: Sequence[AttentionResult], result: AttentionResult) -> AttentionResult | None:
    """What a checkpoint's layers are held against: a speech checkpoint against the text LLM at its own source length,
    without a text LLM against the first speech checkpoint; others against nothing."""
    measured = [r for r in attention if not r.is_control]
    if result.checkpoint.source != "speech":
        return None
    text = next((r for r in measured if r.checkpoint.source == "text"), None)
    if text is not None:
        return text_at_length(attention, text, result)
    first = next(r for r in measured if r.checkpoint.source == "speech")
    return None if first is result else first


def layer_difference(subject: AttentionResult, reference: AttentionResult) -> tuple[Floats, Floats]:
    """Eta of the subject minus that of the reference by layer, and its p-value, corrected for the number of layers."""
    subject, reference = paired(subject, reference)
    ratios = [
        instruction / (instruction + source) for instruction, source in (r.scores() for r in (subject, reference))
    ]
    difference = ratios[0] - ratios[1]
    return subject.eta().mean - reference.eta().mean, corrected_p(difference, subject.clusters, seed=subject.seed)


def differing(subject: AttentionResult, reference: AttentionResult) -> list[int]:
    """By layer -1, 0 or 1: eta is below, not shown to differ, above; p below 0.05 over all layers."""
    if subject.n_layers != reference.n_layers:
        return [0] * subject.n_layers
    change, p = layer_difference(subject, reference)
    return np.where(p < SIGNIFICANT, np.sign(change), 0).astype(int).tolist()


def mean_of_last_group(values: Any) -> Any:
    """The mean over the last group of layers, the last axis: `[..., layers]` -> `[...]`."""
    return values[..., layer_groups(values.shape[-1])[-1]].mean(-1)
