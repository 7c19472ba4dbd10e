"""Instruction sensitivity: does the response still depend on the instruction, or has `P(t|s,i)` become `P(t|s)`?

The measure does not use attention. The response `t` of a sample (source `s`, instruction `i`) is scored after its own
prompt, after the same source with instructions of other tasks, and after other sources with its own instruction:

    D_i = log P(t|s,i) - log mean_k P(t|s,i_k)        D_s = log P(t|s,i) - log mean_k P(t|s_k,i)

in nats. Both means are over pools that include the sample's own instruction (source). If a pool changes nothing, D is
0. If a pool changes the response at random, D is below 0, because the highest P dominates the mean. With `per="token"`
(the default), P is that of a token given the earlier tokens of the response, and D is the mean over tokens.

This tests the claim of arXiv 2410.03798, section 3.4. For whole responses, D is the pointwise mutual information of
response and instruction (source) under a uniform pool. The D of single tokens do not add up to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lsm_probe.data.pools import Pool
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError, NotMeasurable
from lsm_probe.instruments.scoring import NOT_FINITE, log_probabilities
from lsm_probe.memory import run_in_halves
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.prompts import Prompt
from lsm_probe.models.quantisation import advice_on_rounded_inputs, find_nonlinearity, find_quantised
from lsm_probe.models.segments import Segment
from lsm_probe.probes.sensitivity.counterfactuals import OtherSources, other_instructions, pool_of
from lsm_probe.probes.sensitivity.result import SensitivityConventions, SensitivityResult
from lsm_probe.runner.measurement_run import Measured, MeasurementRun, Unusable, stack
from lsm_probe.runner.options import MeasureKeywords, split_options
from lsm_probe.runner.prepared_samples import PreparedSample
from lsm_probe.runner.progress import Record

BOUNDS, BOUNDS_HALF = (1e-3, 1e-3), (0.1, 0.3)
"""Largest allowed difference, in nats per token, between scoring a prompt in a batch and alone: over all samples, and
in the worst sample; in full and half precision. Six built-in samples in bfloat16: 0.06, and 0.09 in the worst."""


def sensitivity(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    per: Literal["token", "response"] = "token",
    pool: Literal["tasks", "paraphrases"] = "tasks",
    instructions: Pool | None = None,
    sources: int | None = None,
    **options: Unpack[MeasureKeywords],
) -> SensitivityResult:
    """Measure how much the response depends on the instruction and on the source, in nats.

    Args:
        checkpoint: what [`lsm_probe.load`] returns.
        samples: with `audio` for an LSM, `text` for a text LLM; with `target` for `response="reference"`.
        per: how the result computes D; see [`SensitivityConventions`].
        pool: `tasks` holds the sample's own instruction and one for each other task; `paraphrases` is the control: it
            holds the sample's own instruction and the other wordings of its task, which should change nothing.
        instructions: the pool, as [`lsm_probe.read_pool`] returns it; by default the instructions of the samples.
        sources: size of the pool of sources, including the own source; by default the size of the instruction pool.
        options: options that all measurements share; see [`ResponseOptions`] and [`RunOptions`].

    Raises:
        InputError: a sample cannot be used (under `on_error="fail"`), none is left, a pool holds only the sample's own
            instruction or source, the response part is unknown, the model gives log-probabilities that are not finite,
            or its key-value cache or batching changes its results.
    """
    responses, run = split_options(options)
    if sources is not None and sources < 2:
        raise InputError(f"--sources {sources}: a pool of sources holds at least 2, the own and another")
    chosen = instructions or pool_of(samples)
    if run.on_error == "fail":
        _check_pool(samples, chosen, pool)
    conventions = SensitivityConventions(per, pool, responses.response, _digest(chosen, samples), sources, run.seed)
    settings = {**conventions.to_dict(), "per": None}
    measurement = MeasurementRun(
        checkpoint=checkpoint, samples=samples, responses=responses, options=run, settings=settings
    )
    others = OtherSources(checkpoint, samples, run.seed, run.on_error)
    scorer = _Scorer(checkpoint, others, chosen, pool, sources)
    with checkpoint.encoding_speech_once():  # an utterance is its own source and that of other samples
        records, common = measurement.run(lambda items: [scorer.measure(item) for item in items])
    return SensitivityResult(
        **common,
        **stack(records, "instruction_log_probs", "source_log_probs"),
        conventions=conventions,
        self_check=_self_check(records, checkpoint.llm),
    )


def _digest(pool: Pool, samples: Sequence[Sample]) -> str:
    """Hash of everything that decides which instructions a sample is compared with."""
    deciding = [task.model_dump() for task in pool.tasks], [(sample.id, sample.task) for sample in samples]
    return hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]


def _check_pool(samples: Sequence[Sample], pool: Pool, kind: Literal["tasks", "paraphrases"]) -> None:
    """Refuse a pool without another instruction for a sample, before the measurement starts."""
    for sample in samples:
        try:
            other_instructions(sample, pool, kind)
        except InputError as error:
            raise InputError(f"sample {sample.id}: {error}") from error


def _self_check(records: Sequence[Record], llm: PreTrainedModel) -> dict[str, Any]:
    """Difference between scoring prompts together and in plain passes, nats per token: over all samples, and the worst.

    Raises:
        NotMeasurable: the difference exceeds rounding in some sample.
    """
    errors = [float(record.arrays["errors"].mean()) for record in records]
    bound, worst_bound = BOUNDS if llm.dtype in (torch.float32, torch.float64) else BOUNDS_HALF
    mean, worst = float(np.mean(errors)), int(np.argmax(errors))
    if not (mean <= bound and errors[worst] <= worst_bound):
        remedy = "" if bound == BOUNDS[0] else "; try --dtype float32"
        cause = "the model's key-value cache or batching changes its results"
        found = find_quantised(llm)
        error = None if found is None else find_nonlinearity(llm.get_submodule(found[0]), llm.dtype)
        if found is not None and error is not None:
            cause = f"{found[0]} is quantised ({found[1]}) and rounds its inputs, so that batches change its outputs"
            remedy = f": {advice_on_rounded_inputs(error)}"
        raise NotMeasurable(
            f"log-probabilities of prompts scored together differ from those of single passes by {mean:.1e} nats a "
            f"token (bound {bound:.0e}), and by {errors[worst]:.1e} in sample {records[worst].sample['id']} (bound "
            f"{worst_bound:.0e}): {cause}; it cannot be measured{remedy}"
        )
    checked = {"mean": mean, "bound": bound, "worst": errors[worst], "worst_bound": worst_bound}
    return {**checked, "unit": "nats per token"}


@dataclass(frozen=True)
class _Scorer:
    """Scores a response with all prompts of both pools."""

    checkpoint: Checkpoint
    others: OtherSources
    pool: Pool
    kind: Literal["tasks", "paraphrases"]
    sources: int | None

    def measure(self, item: PreparedSample) -> Measured:
        try:
            by_instruction, by_source = self._prompts(item)
        except InputError as error:
            return Unusable(str(error), fault=True)
        together = [[item.embedded, *self.checkpoint.embed(by_instruction)], self.checkpoint.embed(by_source)]
        # Batched with the prompt with the most padding, where an effect of the batch is largest.
        group, row = max(
            ((group, row) for group, embedded in enumerate(together) for row in range(len(embedded))),
            key=lambda place: max(map(len, together[place[0]])) - len(together[place[0]][place[1]]),
        )
        scored = torch.cat([self._score(embedded, item) for embedded in (*together, [together[group][row]])])
        # One copy for the sample, because each copy waits for the device.
        instruction, others, [alone] = np.split(scored.cpu().numpy(), np.cumsum(list(map(len, together))))
        if not (np.isfinite(instruction).all() and np.isfinite(others).all()):
            return Unusable(NOT_FINITE, fault=True)
        return {
            "instruction_log_probs": instruction,
            "source_log_probs": np.concatenate([instruction[:1], others]),
            "errors": np.abs(alone - (instruction, others)[group][row]),
        }

    def _prompts(self, item: PreparedSample) -> tuple[list[Prompt], list[Prompt]]:
        """The same source under other instructions, and other sources under the same instruction."""
        sample, encode = item.sample, self.checkpoint.encode
        instructions = other_instructions(sample, self.pool, self.kind)
        number = len(instructions) if self.sources is None else self.sources - 1
        sources = self.others.draw(sample, number, lambda source: self._check_length(item, source))
        own: Any = sample.text
        if self.checkpoint.source == "speech":
            own = item.embedded[item.prompt.positions(Segment.SOURCE)]
        by_instruction = [encode(instruction, own) for instruction in instructions]
        for prompt in by_instruction:
            self.checkpoint.check_length(prompt, len(item.response))
        return by_instruction, [encode(sample.instruction, source) for source in sources]

    def _check_length(self, item: PreparedSample, source: Any) -> None:
        prompt = self.checkpoint.encode(item.sample.instruction, source)
        self.checkpoint.check_length(prompt, len(item.response))

    def _score(self, embedded: Sequence[Tensor], item: PreparedSample) -> Tensor:
        """`[prompts, measured response tokens]`, in as many passes as memory requires."""
        scored = torch.stack(
            run_in_halves(lambda part: list(log_probabilities(self.checkpoint.llm, part, item.response)), embedded)
        )
        return scored[:, item.measured]
