"""One probing of a model in training: eta and both sensitivities on a small fixed set of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.utils.memory import clear_device_cache

from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.pools import Pool
from lsm_probe.data.sample import Sample
from lsm_probe.distributed import all_gather_or_raise, is_main_rank, on_all_ranks
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.devices import input_device
from lsm_probe.models.loading import load
from lsm_probe.models.retokenise import in_tokens_of
from lsm_probe.probes.attention.measure import attention
from lsm_probe.probes.sensitivity.measure import sensitivity
from lsm_probe.runner.options import ResponseOptions
from lsm_probe.runner.prepared_samples import check_samples, prepare
from lsm_probe.runner.result import Curve

Responses = dict[str, list[int]]
"""Token ids by sample id."""


@dataclass(frozen=True, kw_only=True)
class BiasProbing:
    """Settings of the probings.

    Attributes:
        samples: the fixed samples.
        data: their identity.
        response: which responses are measured: the `base` LLM's, the samples' targets (`reference`), or the model's own
            responses at each probing (`generated`).
        base: the text LLM, for `base`.
        instructions: the pool of instructions; None for the samples' own.
        sources: size of the pool of sources, including the own source.
        max_new_tokens: maximum length of a generated response.
        batch_size: samples run together.
        seed: for the draw of sources.
    """

    samples: Sequence[Sample]
    data: DataIdentity
    response: Literal["base", "reference", "generated"]
    base: str | Path | Checkpoint | None
    instructions: Pool | None
    sources: int
    max_new_tokens: int
    batch_size: int
    seed: int

    @property
    def base_name(self) -> str | None:
        """Name of the base LLM."""
        base = self.base.name if isinstance(self.base, Checkpoint) else self.base
        return None if base is None else str(base)

    def describe(self) -> dict[str, Any]:
        """Everything that affects the numbers, as plain values."""
        pool = None if self.instructions is None else [task.model_dump(mode="json") for task in self.instructions.tasks]
        return {
            "data": self.data.to_dict(),
            "response": self.response,
            "base": self.base_name,
            "instructions": pool,
            "sources": self.sources,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }

    @on_all_ranks()
    def fixed_responses(self, checkpoint: Checkpoint) -> Responses | None:
        """The responses that all probings share; None if each probing generates its own.

        Under `torchrun` every process must call it; rank 0 generates.

        Raises:
            InputError: the base LLM cannot be loaded or gives no responses, or samples lack a transcript or target.
        """
        if self.response == "reference":
            return {sample.id: checkpoint.encode_response(sample.target or "") for sample in self.samples}
        if self.response == "generated":
            return None
        [found, *_] = all_gather_or_raise(self._base_responses(checkpoint) if is_main_rank() else None)
        clear_device_cache(garbage_collection=True)  # the memory of the base LLM is needed for training
        return found

    def measure(self, checkpoint: Checkpoint, responses: Responses | None) -> tuple[dict[str, Any], list[list[int]]]:
        """One row of a [`BiasHistory`] without `epoch` and `seconds`, and the first and last layer of each group.

        The row omits undefined numbers.

        Under `torchrun` every process must call it: each measures its share of the batches.

        Args:
            checkpoint: the model, inside [`unchanged`].
            responses: the return value of [`fixed_responses`].

        Raises:
            InputError: a sample or the model cannot be measured.
        """
        with checkpoint.encoding_speech_once():
            return self._measure(checkpoint, responses)

    def _measure(self, checkpoint: Checkpoint, responses: Responses | None) -> tuple[dict[str, Any], list[list[int]]]:
        options: dict[str, Any] = {"batch_size": self.batch_size, "data": self.data, "seed": self.seed}
        attended = attention(
            checkpoint, self.samples, responses=responses, max_new_tokens=self.max_new_tokens, **options
        )
        answers = [sample for sample in self.samples if sample.id in set(attended.ids)]
        changed = sensitivity(
            checkpoint,
            answers,
            responses=attended.responses(),
            instructions=self.instructions,
            sources=self.sources,
            max_new_tokens=self.max_new_tokens,
            **options,
        )
        groups = attended.eta_groups()
        row: dict[str, Any] = {"eta": float(attended.eta().mean.mean())}
        row |= {f"eta_{i}": group["eta"] for i, group in enumerate(groups, start=1)}
        row |= _with_interval("D_i", changed.instruction()) | _with_interval("D_s", changed.source())
        row |= {
            "n_samples": len(changed.ids),
            "n_utterances": len({sample.utterance for sample in answers}),
        }
        # JSON has no NaN, which marks an interval from fewer than three utterances.
        return {key: value for key, value in row.items() if np.isfinite(value)}, [group["layers"] for group in groups]

    def _base_responses(self, checkpoint: Checkpoint) -> Responses:
        """The base LLM's responses to the transcripts, as token ids of the model in training."""
        base = self.base if isinstance(self.base, Checkpoint) else load(str(self.base), device=_device(checkpoint))
        if base.source != "text":
            raise InputError(f"base {base.name} reads speech: give the text LLM that the model was built from")
        options = ResponseOptions(max_new_tokens=self.max_new_tokens)
        check_samples(base, self.samples, options)
        answers: Responses = {}
        for first in range(0, len(self.samples), self.batch_size):
            items, _ = prepare(base, self.samples[first : first + self.batch_size], options, "fail")
            answers |= {item.sample.id: item.response for item in items}
        # A sample whose response has no text gets an empty response, which is not measured.
        return {sample: [] for sample in answers} | in_tokens_of(checkpoint, base, answers)


def _device(checkpoint: Checkpoint) -> str:
    return str(input_device(checkpoint.model))


def _with_interval(key: str, value: Curve) -> dict[str, float]:
    return {key: float(value.mean), f"{key}_low": float(value.ci_low), f"{key}_high": float(value.ci_high)}
