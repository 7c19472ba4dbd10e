"""The sensitivity probe's result: log-probabilities of the response by pool member and token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp

from lsm_probe.errors import InputError
from lsm_probe.runner.conventions import Choices
from lsm_probe.runner.result import Curve, Floats, MeasurementResult, curve, rounded


@dataclass(frozen=True)
class SensitivityConventions(Choices):
    """How log-probabilities become a sensitivity. Defaults are listed first; `per` can be changed without another run.

    Attributes:
        per: `token` takes P of each token given the tokens before it, and then the mean over tokens, in nats per token;
            `response` takes P of the whole response, in nats per response. Both are at most the logarithm of the pool
            size. Whole responses saturate there (1.606 of 1.609 nats, measured), which hides differences.
        pool: the other instructions: one for each other task (`tasks`), or `paraphrases` of the sample's own.
        response: which response: the model's own `generated` one or the `reference`.
        instructions: hash of the pool of instructions and of the samples' tasks.
        sources: size of the pool of sources; None if it equals the size of the instruction pool.
        draw: seed for the draw of sources.
    """

    per: Literal["token", "response"] = "token"
    pool: Literal["tasks", "paraphrases"] = "tasks"
    response: Literal["generated", "reference"] = "generated"
    instructions: str = ""
    sources: int | None = None
    draw: int = 0


@dataclass(frozen=True, kw_only=True)
class SensitivityResult(MeasurementResult):
    """Log-probabilities of each sample's response under its own and under other instructions and sources.

    Attributes:
        instruction_log_probs: `log P(t_m | t_<m, s, i_k)` in nats, `[samples, pool, tokens]`, float32; the sample's own
            instruction is first; NaN beyond a sample's pool and response.
        source_log_probs: the same for `P(t_m | t_<m, s_k, i)`; the sample's own source is first.
        conventions: how this object computes D; see [`with_conventions`].
        self_check: difference between scoring prompts together and in plain passes, over all samples and in the worst
            one.
    """

    NAME: ClassVar[str] = "sensitivity"
    BY_SAMPLE: ClassVar[tuple[str, ...]] = ("instruction_log_probs", "source_log_probs")
    PLOT: ClassVar[str] = "lsm_probe.probes.sensitivity.plot:plot_sensitivity"
    TABLE: ClassVar[str] = "lsm_probe.probes.sensitivity.tables:sensitivity_table"

    instruction_log_probs: Floats
    source_log_probs: Floats
    conventions: SensitivityConventions
    self_check: dict[str, Any]

    def with_conventions(self, **changes: str) -> SensitivityResult:
        """The same log-probabilities under another convention (`per`).

        Raises:
            InputError: a value is unknown, or the convention needs another run.
        """
        for key in ("pool", "response", "instructions", "sources", "draw"):
            own = getattr(self.conventions, key)
            if changes.get(key, own) != own:
                raise InputError(f"{key} {changes[key]!r} cannot be read from a result made with {own!r}: run it again")
        return replace(self, conventions=replace(self.conventions, **changes))  # type: ignore[arg-type]

    @property
    def of_own_words(self) -> bool:
        """Whether the checkpoint generated the responses itself (they are neither references nor given)."""
        return self.conventions.response == "generated" and self.checkpoint.responses != "given"

    def by_sample(self) -> tuple[Floats, Floats]:
        """D_i and D_s of each sample in nats, each `[samples]`, accumulated in float64."""
        return self._sensitivity(self.instruction_log_probs), self._sensitivity(self.source_log_probs)

    def by_token(self) -> tuple[Floats, Floats]:
        """D_i and D_s of each token given the true tokens before it, each `[samples, tokens]`; NaN after the end."""
        return _against_pool(self.instruction_log_probs), _against_pool(self.source_log_probs)

    def instruction(self) -> Curve:
        """D_i: mean over samples with its interval, nats."""
        return self.mean(self.by_sample()[0])

    def source(self) -> Curve:
        """D_s: mean over samples with its interval, nats."""
        return self.mean(self.by_sample()[1])

    def info_eta(self) -> Curve | None:
        """`D_i / (D_i + D_s)` of the means, with its interval; None if the interval of either includes 0 or is
        unknown."""
        if not (self.instruction().ci_low > 0 and self.source().ci_low > 0):
            return None
        instruction, source = (values.mean() for values in self.by_sample())
        return curve(instruction / (instruction + source), self._left_out_eta()).clipped(0, 1)

    def influence_notes(self) -> list[str]:
        """A sentence for each of D_i and D_s that is decided by a single outlying utterance."""
        notes = [self.influence_note(*named) for named in zip(("D_i", "D_s"), self.by_sample(), strict=True)]
        return [note for note in notes if note]

    def ceilings(self) -> tuple[float, float]:
        """The largest D_i and D_s that the pool sizes allow: the mean over samples of the logarithm of the size,
        nats."""
        sizes = [(~np.isnan(p[:, :, 0])).sum(1) for p in (self.instruction_log_probs, self.source_log_probs)]
        return float(np.log(sizes[0]).mean()), float(np.log(sizes[1]).mean())

    def headline(self) -> str:
        return f"D_i {self.instruction()}, D_s {self.source()} nats per {self.conventions.per}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each sample: D_i and D_s in nats."""
        instruction, source = self.by_sample()
        return pd.DataFrame(
            {
                "checkpoint": self.name,
                "id": self.ids,
                "task": [sample.get("task") for sample in self.samples],
                "D_instruction": instruction,
                "D_source": source,
            }
        )

    def summary(self) -> dict[str, Any]:
        info_eta, (instruction, source) = self.info_eta(), self.ceilings()
        return {
            "self_check": self.self_check,
            "unit": f"nats per {self.conventions.per}",
            "instruction": {**self.instruction().to_dict(), "ceiling": round(instruction, 6)},
            "source": {**self.source().to_dict(), "ceiling": round(source, 6)},
            "info_eta": None if info_eta is None else info_eta.to_dict(),
            "by_convention": {per: self._reading(per) for per in ("token", "response")},
            "by_task": self._by_task(),
        }

    def differences(self, other: SensitivityResult) -> dict[str, Any]:
        mine, theirs = self.by_sample(), other.by_sample()
        my_eta, their_eta, eta = self.info_eta(), other.info_eta(), None
        if my_eta is not None and their_eta is not None:
            eta = curve(their_eta.mean - my_eta.mean, other._left_out_eta() - self._left_out_eta()).to_dict()
        return {
            "instruction_difference": self.mean(theirs[0] - mine[0]).to_dict(),
            "source_difference": self.mean(theirs[1] - mine[1]).to_dict(),
            "info_eta_difference": eta,
            "same_responses": self.responses() == other.responses(),
        }

    def drift_from(self, reference: SensitivityResult) -> dict[str, Floats]:
        pairs = zip(("D_i", "D_s"), self.by_sample(), reference.by_sample(), strict=True)
        return {f"{name} (nats per {self.conventions.per})": own - exact for name, own, exact in pairs}

    def warning(self, other: SensitivityResult, controls: Sequence[str] = ()) -> str | None:
        if self.responses() == other.responses():
            return None
        return (
            f"{self.name} and {other.name} are measured on different responses: a model that says less depends on "
            "less; compare also on those of one (--responses), or on the reference"
        )

    def _reading(self, per: str) -> dict[str, Any]:
        read = self.with_conventions(per=per)
        info_eta = read.info_eta()
        return {
            "instruction": rounded(read.instruction().mean),
            "source": rounded(read.source().mean),
            "info_eta": None if info_eta is None else rounded(info_eta.mean),
        }

    def _by_task(self) -> dict[str, Any]:
        frame = self.to_frame().assign(task=lambda f: f["task"].fillna("none"))
        return {
            str(task): {
                "n_samples": len(rows),
                "instruction": rounded(rows["D_instruction"].to_numpy().mean()),
                "source": rounded(rows["D_source"].to_numpy().mean()),
            }
            for task, rows in frame.groupby("task")
        }

    def _sensitivity(self, log_probs: Floats) -> Floats:
        if self.conventions.per == "token":
            return np.nanmean(_against_pool(log_probs), 1)
        absent = np.isnan(log_probs[:, :, 0])
        whole = np.where(absent, np.nan, np.nansum(log_probs.astype(np.float64), 2))
        return _against_pool(whole[:, :, None])[:, 0]

    def _left_out_eta(self) -> NDArray[np.float64]:
        """Info-eta without each utterance in turn, `[utterances]`."""
        instruction, source = (self.leave_one_out(values) for values in self.by_sample())
        return instruction / (instruction + source)


def _against_pool(log_probs: Floats) -> Floats:
    """`log P_own - log mean_k P_k` over the pool axis: `[samples, pool, tokens]` -> `[samples, tokens]`."""
    log_probs = log_probs.astype(np.float64)
    absent = np.isnan(log_probs)
    size = (~absent).sum(1)
    with np.errstate(divide="ignore"):
        total = logsumexp(np.where(absent, -np.inf, log_probs), axis=1)
        return np.where(size > 0, log_probs[:, 0] - total + np.log(size), np.nan)
