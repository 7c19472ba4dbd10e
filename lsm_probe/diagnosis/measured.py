"""All measurements of one checkpoint that its verdict is based on."""

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
    """The measurements of one checkpoint on the same samples; None for those that were not made.

    Attributes:
        name: of the checkpoint.
        source: the checkpoint's input: speech, or transcripts in the speech slot (a text LLM).
        attention: on the checkpoint's own responses.
        control: attention of the base LLM, with its transcripts repeated or cut to this checkpoint's source lengths.
        own: sensitivity on the checkpoint's own responses.
        base_words: sensitivity on the responses of the base LLM.
        base_own: sensitivity of the base LLM on its own responses: the reference for `own` and `base_words`.
        knockout: on the checkpoint's own responses.
        alignment: speech compared with transcripts.
        transcription: responses to a transcription instruction, with the word error rate.
        tasks: name -> task, for the samples whose task asks for a format that can be checked.
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
