"""All measurements of one checkpoint that a verdict is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.task import Task
from lsm_probe.probes.alignment.result import AlignmentResult
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.knockout.result import KnockoutResult
from lsm_probe.probes.sensitivity.result import SensitivityResult


@dataclass(frozen=True, kw_only=True)
class MeasuredCheckpoint:
    """What was measured of one checkpoint on the same samples; None for what was not.

    Attributes:
        name: of the checkpoint.
        source: what it reads: speech, or transcripts in the speech slot (a text LLM).
        attention: on its own responses.
        control: attention of the base LLM with its transcripts at this checkpoint's source lengths.
        own: sensitivity on its own responses.
        base_words: sensitivity on the responses of the base LLM.
        base_own: sensitivity of the base LLM on the base LLM's own responses: the reference for both.
        knockout: on its own responses.
        alignment: speech against transcripts.
        transcription: answers to a transcription instruction, with the word error rate.
        tasks: name -> task, for the samples whose task asks for a form that can be checked.
    """

    name: str
    source: Literal["speech", "text"]
    attention: AttentionResult | None = None
    control: AttentionResult | None = None
    own: SensitivityResult | None = None
    base_words: SensitivityResult | None = None
    base_own: SensitivityResult | None = None
    knockout: KnockoutResult | None = None
    alignment: AlignmentResult | None = None
    transcription: EvaluationResult | None = None
    tasks: Mapping[str, Task] = field(default_factory=dict)
