"""Decides which measurements a diagnosis makes, and on which samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from lsm_probe.data.pools import Pool, read_pool
from lsm_probe.data.sample import Sample
from lsm_probe.data.spread import one_sample_an_utterance
from lsm_probe.errors import InputError
from lsm_probe.evaluation import EVALUATION
from lsm_probe.evaluation.task import Task
from lsm_probe.probes.alignment.measure import PERPLEXITY
from lsm_probe.probes.alignment.measure import UTTERANCES as ALIGNMENT_UTTERANCES
from lsm_probe.probes.registry import PROBES
from lsm_probe.probes.sensitivity.counterfactuals import pool_of
from lsm_probe.runner.measurement import Measurement

SETS = {
    "quick": ("attention", "sensitivity", "transcription"),
    "full": ("attention", "sensitivity", "base-words", "knockout", "alignment", "transcription"),
}
"""Names of the measurements of each set. They are also the names of the folders that hold the results."""
_OF_BASE = ("attention", "sensitivity")
"""Measurements that are also made for the base LLM, as a reference."""
_OF_SPEECH = ("base-words", "alignment", "transcription")
"""Measurements that are not made for a text LLM."""
UTTERANCES = 48
"""Default number of utterances."""
SHARES = {"base-words": 1 / 4, "knockout": 1 / 6}
"""Share of the utterances that slow measurements use; other measurements use all utterances."""
FEWEST = 6
"""Minimum number of utterances of every measurement, if the data has that many."""
MAX_NEW_TOKENS = 24
INSTRUCTIONS, SOURCES = 8, 4
"""Sizes of sensitivity's pools: instructions (if the samples give the pool) and sources. Each response is scored with
both pools, which takes longer than all other measurements together. D_i needs the larger pool, because it separates a
checkpoint that follows the instruction from one that follows it partly."""
_TRANSCRIPTION_TOKENS_PER_WORD = 3
_LONGEST_TRANSCRIPTION = 256
_DEFAULT_POOL = "probing"
_TRANSCRIPTION = Task(name="transcription", title="Transcription", metrics=("word_error_rate",))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement of a diagnosis.

    Attributes:
        name: one of [`SETS`].
        measurement: the measurement.
        samples: the samples it is measured on.
        options: keyword arguments of the measurement.
        whose: which responses are measured: the checkpoint's `own`, those of the `base` LLM, or none.
    """

    name: str
    measurement: Measurement
    samples: Sequence[Sample]
    options: dict[str, Any]
    whose: Literal["own", "base"] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The measurements that a diagnosis makes for each checkpoint.

    Attributes:
        parts: the measurements, in the order in which they are made.
        instructions: the pool of instructions for sensitivity.
        left_out: name of a measurement -> why it is not made, as a clause.
    """

    parts: Sequence[Part]
    instructions: Pool
    left_out: dict[str, str]

    def for_source(self, source: Literal["speech", "text"]) -> list[Part]:
        """The parts that can be measured for a checkpoint with this input."""
        return [part for part in self.parts if source == "speech" or part.name not in _OF_SPEECH]

    def for_base(self) -> list[Part]:
        """The parts that are measured for the base LLM."""
        return [part for part in self.parts if part.name in _OF_BASE]


def make_plan(
    samples: Sequence[Sample],
    *,
    quick: bool = False,
    with_base: bool = False,
    instructions: Pool | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    utterances: int = UTTERANCES,
) -> Plan:
    """Choose the measurements that the samples allow, and the samples for each.

    Each measurement takes one sample per utterance, because intervals depend on the number of utterances and hardly
    on further samples of the same utterance. The samples are chosen in rotation, so that all tasks appear.

    Args:
        samples: all samples.
        quick: leave out sensitivity on the base LLM's responses, knockout and alignment.
        with_base: whether there is a base LLM.
        instructions: the pool of instructions for sensitivity. By default it holds one instruction for each of the
            first eight tasks of the samples; samples without `task` count each instruction as a task. The pool
            `probing` is used if there is only one task, if there are more than 32, or if an instruction has a
            placeholder.
        max_new_tokens: maximum length of a response.
        utterances: maximum number of utterances that are measured, the first ones of the data; see also [`SHARES`].
    """
    pool = instructions or _pool(samples)
    samples = one_sample_an_utterance(samples, utterances)
    transcribed = [sample for sample in samples if sample.text is not None]
    wordings = len({(sample.text or "").strip() for sample in transcribed})
    no_other = "" if len(samples) > 1 else "it needs at least two different utterances, and the data has one"
    no_base = "" if with_base else "it needs a base LLM (--base)"
    no_text = "" if transcribed else "it needs transcripts (`text`)"
    needed = ALIGNMENT_UTTERANCES
    few = "" if wordings >= needed else f"it needs transcripts (`text`) of {needed} utterances, got {wordings}"
    longest: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    scored = longest | {"instructions": pool, "sources": SOURCES}
    # t-SNE's perplexity must be lower for few samples, even if some of them are left out later.
    perplexity = {"perplexity": min(PERPLEXITY, max(1.0, wordings / 2))}
    candidates = [
        (_part("attention", "attention", samples, longest, whose="own"), ""),
        (_part("sensitivity", "sensitivity", samples, scored, whose="own"), no_other),
        (_part("base-words", "sensitivity", samples, scored, whose="base"), no_other or no_base),
        (_part("knockout", "knockout", samples, longest, whose="own"), ""),
        (_part("alignment", "alignment", transcribed, perplexity), few),
        (_transcription(transcribed), no_text),
    ]
    wanted = [(part, reason) for part, reason in candidates if part.name in SETS["quick" if quick else "full"]]
    return Plan(
        parts=[part for part, reason in wanted if not reason],
        instructions=pool,
        left_out={part.name: reason for part, reason in wanted if reason},
    )


def _part(
    name: str,
    measurement: str,
    samples: Sequence[Sample],
    options: dict[str, Any],
    whose: Literal["own", "base"] | None = None,
) -> Part:
    return Part(name=name, measurement=PROBES[measurement], samples=_share(name, samples), options=options, whose=whose)


def _share(name: str, samples: Sequence[Sample]) -> Sequence[Sample]:
    """The first samples, as many as the part uses."""
    return samples[: max(FEWEST, ceil(len(samples) * SHARES.get(name, 1)))]


def _transcription(samples: Sequence[Sample]) -> Part:
    """The measurement of a transcription instruction, with the transcripts as references."""
    instruction = read_pool("transcription").tasks[0].instructions[0]
    changes = {"instruction": instruction, "alternatives": (), "context": None, "task": "transcription"}
    asked = [
        sample.model_copy(update={**changes, "id": f"transcription/{sample.id}", "target": sample.text})
        for sample in samples
    ]
    words = max((len((sample.text or "").split()) for sample in asked), default=0)
    longest = min(_LONGEST_TRANSCRIPTION, 8 + _TRANSCRIPTION_TOKENS_PER_WORD * words)
    options = {"tasks": [_TRANSCRIPTION], "max_new_tokens": longest}
    return Part(name="transcription", measurement=EVALUATION, samples=asked, options=options)


def _pool(samples: Sequence[Sample]) -> Pool:
    """The samples' own instructions, if they can form a pool."""
    try:
        own = pool_of(samples)
    except InputError:  # too many tasks, or a placeholder in an instruction
        return read_pool(_DEFAULT_POOL)
    return Pool(own.tasks[:INSTRUCTIONS]) if len(own.tasks) > 1 else read_pool(_DEFAULT_POOL)
