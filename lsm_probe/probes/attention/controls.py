"""The control that a comparison of text and speech needs: the text LLM with its transcripts as long as the speech.

Responses and positions are the same: only the kind of source differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lsm_probe.data.sample import Sample
from lsm_probe.probes.attention.result import AttentionResult, has_same_source_lengths
from lsm_probe.runner.identity import Control
from lsm_probe.runner.measurement import ControlRun


def length_controls(results: Sequence[AttentionResult], samples: Sequence[Sample]) -> Iterator[ControlRun]:
    """Measure each text LLM at the source lengths of each speech checkpoint, where it was not measured at these.

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
