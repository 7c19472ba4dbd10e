"""The attention probe's result: sums by sample, layer and segment, read under any convention without a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsm_probe.errors import InputError
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.runner.identity import Control
from lsm_probe.runner.multiple_testing import Tested, corrected_p
from lsm_probe.runner.result import Curve, Floats, MeasurementResult, curve, layer_groups, rounded

SEGMENTS = ("system", "template", "instruction", "source", "first")
"""Last axis of the stored sums. `first` is position 0 if it is a template token; it is also part of `template`."""


@dataclass(frozen=True)
class TokenScores:
    """A_j of single prompt tokens; the samples are concatenated.

    Attributes:
        norms: `[layers, tokens]`, head form `sum_then_norm`.
        ids: token ids, `[tokens]`.
        segments: stored values of [`Segment`], `[tokens]`.
        offsets: where each sample begins and where the last one ends, `[samples + 1]`.
    """

    norms: Floats
    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class AnswerSums:
    """The same sums as those of all rows, but only over the rows after the thinking.

    Attributes:
        norms, head_norms: as in [`AttentionResult`]; NaN where the thinking is unfinished.
        rows: generating rows of the answer, `[samples]`; all of them where there is no thinking.
    """

    norms: Floats
    head_norms: Floats
    rows: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AttentionResult(MeasurementResult):
    """Norm-based attention of one checkpoint on one set of samples.

    Norms have the unit of the model's residual stream; across models only their ratios can be compared.

    Attributes:
        norms: sums over a segment's tokens of A_j (the mean over generating rows of `|sum_h alpha v W_O|`),
            `[samples, layers, segments]`, segments as in `SEGMENTS`, accumulated in float32.
        head_norms: the same for the norm of each head, `[samples, layers, heads, segments]`.
        tokens: token counts, `[samples, segments]`.
        rows: generating rows (response tokens, EOS included where produced), `[samples]`.
        conventions: how this object computes eta; see [`with_conventions`].
        self_check: how well the same alpha, v and W_O reproduced the attention modules' own output, and which library
            captured the activations (`backend`).
        token_scores: only if requested.
        answer: only if a response begins with thinking and all rows were measured; see [`of_part`].
    """

    NAME: ClassVar[str] = "attention"
    BY_SAMPLE: ClassVar[tuple[str, ...]] = ("norms", "head_norms", "tokens", "rows")
    PLOT: ClassVar[str] = "lsm_probe.probes.attention.plot:plot_eta"
    TABLE: ClassVar[str] = "lsm_probe.probes.attention.tables:attention_table"

    norms: Floats
    head_norms: Floats
    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    conventions: Conventions
    self_check: dict[str, Any]
    token_scores: TokenScores | None = None
    answer: AnswerSums | None = None

    @property
    def n_layers(self) -> int:
        return self.norms.shape[1]

    def with_conventions(self, **changes: str) -> AttentionResult:
        """The same sums read under other conventions (`heads`, `segment`, `aggregate`, `span`).

        Raises:
            InputError: for an unknown value, or for `response`, which needs another run.
        """
        if changes.get("response", self.conventions.response) != self.conventions.response:
            raise InputError(
                f"response {changes['response']!r} cannot be read from a result made with "
                f"{self.conventions.response!r}: run the probe again"
            )
        return replace(self, conventions=replace(self.conventions, **changes))  # type: ignore[arg-type]

    def of_part(self, part: Literal["thinking", "answer"]) -> AttentionResult:
        """The result over the rows of one part of the responses, for the samples that have it. Needs no forward pass.

        Args:
            part: `thinking` or `answer`; a response without thinking counts entirely as answer.

        Raises:
            InputError: no measured response has that part, or only one part was measured.
        """
        if (measured := self.checkpoint.response_part) is not None:
            raise InputError(f"{self.name} was measured with --response-part {measured} alone")
        answer = self.answer or AnswerSums(self.norms, self.head_norms, self.rows)
        rows = answer.rows if part == "answer" else self.rows - answer.rows
        if not rows.any():
            raise InputError(f"no response of {self.name} has the part {part!r}")

        def of_rows(whole: Floats, answers: Floats) -> Floats:
            if part == "answer":
                return answers
            own = answer.rows.reshape(-1, *[1] * (whole.ndim - 1))
            summed = (own + rows.reshape(own.shape)) * whole.astype(np.float64) - own * np.nan_to_num(answers)
            return summed / rows.reshape(own.shape).clip(1)

        return replace(
            self,
            norms=of_rows(self.norms, answer.norms),
            head_norms=of_rows(self.head_norms, answer.head_norms),
            rows=rows,
            checkpoint=replace(self.checkpoint, response_part=part),
            answer=None,
        ).subset([sample for sample, count in zip(self.ids, rows, strict=True) if count])

    def scores(self) -> tuple[Floats, Floats]:
        """S_instruction and S_source under the conventions, each `[samples, layers]` (arXiv 2410.03798, eq. 2)."""
        norms = self.norms if self.conventions.heads == "sum_then_norm" else self.head_norms.mean(2)
        return self._instruction_and_source(norms.astype(np.float64))

    def head_scores(self) -> tuple[Floats, Floats]:
        """S_instruction and S_source of single heads, each `[samples, layers, heads]`."""
        samples, layers, heads, segments = self.head_norms.shape
        flat = self.head_norms.astype(np.float64).reshape(samples, layers * heads, segments)
        instruction, source = self._instruction_and_source(flat)
        return instruction.reshape(samples, layers, heads), source.reshape(samples, layers, heads)

    def eta(self) -> Curve:
        """Instruction proportion `S_instruction / (S_instruction + S_source)` by layer, with its interval."""
        return curve(self._aggregate(self.scores(), _of_all), self.left_out_eta()).clipped(0, 1)

    def left_out_eta(self) -> Floats:
        """Eta by layer without each utterance in turn, `[utterances, layers]`."""
        return self._aggregate(self.scores(), self.leave_one_out)

    def head_eta(self) -> Curve:
        """Eta of single heads with its interval, `[layers, heads]`, under `segment`, `aggregate` and `span`.

        NaN for a head that attends to neither instruction nor source in some sample.
        """
        return curve(self._aggregate(self.head_scores(), _of_all), self.left_out_head_eta()).clipped(0, 1)

    def left_out_head_eta(self) -> Floats:
        """Eta of single heads without each utterance in turn, `[utterances, layers, heads]`."""
        return self._aggregate(self.head_scores(), self.leave_one_out)

    def head_share(self) -> Floats:
        """Each head's part of what its layer reads from instruction and source, `[layers, heads]`.

        `(S_instruction + S_source)` of the head, divided by the sum over its layer's heads: its weight in the layer's
        eta under `mean_of_norms`. A head with a low eta and a share near 0 hardly reads the source.
        """
        both = np.add(*self.head_scores())
        if self.conventions.aggregate == "mean_of_ratios":
            return (both / both.sum(2, keepdims=True)).mean(0)
        return both.mean(0) / both.mean(0).sum(1, keepdims=True)

    def eta_groups(self) -> list[dict[str, Any]]:
        """Eta averaged over `numpy.array_split(layers, 6)`, as in the paper's figures."""
        mean = self.eta().mean
        groups = layer_groups(self.n_layers)
        return [{"layers": [int(g[0]), int(g[-1])], "eta": float(mean[g].mean())} for g in groups]

    def find_controls(self, results: Sequence[MeasurementResult]) -> dict[str, AttentionResult]:
        """The controls at this checkpoint's source lengths, by the name of their text LLM.

        If a text LLM has several controls, this is the one with most of this result's samples, then the one that names
        this checkpoint first.
        """
        found = [
            result
            for result in results
            if isinstance(result, AttentionResult) and result.is_control and has_same_source_lengths(result, self)
        ]
        ids = set(self.ids)
        found.sort(key=lambda result: (len(ids.intersection(result.ids)), result.control.rank_for(self.name)))
        return {result.control.control_of: result for result in found}

    @property
    def control(self) -> Control:
        """What this result is a control for; defined only for controls."""
        assert self.checkpoint.control is not None
        return self.checkpoint.control

    @property
    def measured_on(self) -> str:
        """The number of samples and the mean source length, for legends: `48 samples, 29 speech tokens`."""
        length = self.tokens[:, SEGMENTS.index("source")].mean()
        kind = "speech" if self.checkpoint.source == "speech" else "transcript"
        return f"{len(self.samples)} samples, {length:.0f} {kind} tokens"

    def source_lengths(self) -> dict[str, int]:
        """Number of source tokens by sample id."""
        return dict(zip(self.ids, self.tokens[:, SEGMENTS.index("source")].tolist(), strict=True))

    def subset(self, ids: list[str]) -> AttentionResult:
        """The result of these samples alone, in this order; scores of single tokens are dropped."""
        keep = self.positions(ids)
        answer = None if self.answer is None else AnswerSums(*(sums[keep] for sums in vars(self.answer).values()))
        return replace(super().subset(ids), token_scores=None, answer=answer)

    def headline(self) -> str:
        last = layer_groups(self.n_layers)[-1]
        eta = curve(self.eta().mean[last].mean(), self.left_out_eta()[:, last].mean(1))
        return f"eta of layers {last[0]}–{last[-1]} {eta.clipped(0, 1)}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each layer: eta with its interval, S_instruction and S_source (means over samples)."""
        instruction, source = self.scores()
        return pd.DataFrame(
            {
                "checkpoint": self.name,
                "layer": np.arange(self.n_layers),
                **self.eta().columns("eta", "ci_low", "ci_high"),
                "S_instruction": instruction.mean(0),
                "S_source": source.mean(0),
            }
        )

    def head_frame(self) -> pd.DataFrame:
        """A row for each layer and head: its own eta with its interval, its share of the layer (see [`head_share`]),
        S_instruction and S_source (means over samples). `.sort_values("eta")` ranks the heads."""
        instruction, source = self.head_scores()
        layers, heads = instruction.shape[1:]
        return pd.DataFrame(
            {
                "checkpoint": self.name,
                "layer": np.repeat(np.arange(layers), heads),
                "head": np.tile(np.arange(heads), layers),
                **self.head_eta().columns("eta", "ci_low", "ci_high"),
                "share": self.head_share().ravel(),
                "S_instruction": instruction.mean(0).ravel(),
                "S_source": source.mean(0).ravel(),
            }
        )

    def summary(self) -> dict[str, Any]:
        return {
            "self_check": self.self_check,
            "layers": list(range(self.n_layers)),
            "eta": self.eta().to_dict(),
            "eta_groups": [{**group, "eta": round(group["eta"], 6)} for group in self.eta_groups()],
            "eta_by_segment_convention": {
                segment: rounded(self.with_conventions(segment=segment).eta().mean) for segment in ("mean", "sum")
            },
            "segments": self._segment_summary(),
            **({} if self.answer is None else {"eta_by_part": self._by_part(self.answer)}),
        }

    def _by_part(self, answer: AnswerSums) -> dict[str, Any]:
        """Eta of the thinking and of the answers, each over the samples that have such rows."""
        found = []
        if (self.rows - answer.rows).any():
            found.append(self.of_part("thinking"))
        if answer.rows.any():
            found.append(self.of_part("answer"))
        return {
            str(own.checkpoint.response_part): {
                "n_samples": len(own.samples),
                "rows": rounded(own.rows.mean()),
                **own.eta().to_dict(),
            }
            for own in found
        }

    def differences(self, other: AttentionResult) -> dict[str, Any]:
        source = SEGMENTS.index("source")
        differences = None
        if self.n_layers == other.n_layers:
            differences = {
                s: eta_difference(self.with_conventions(segment=s), other.with_conventions(segment=s)).to_dict()
                for s in ("mean", "sum")
            }
        same_heads = self.head_norms.shape[1:3] == other.head_norms.shape[1:3]
        return {
            "eta_difference": differences,
            "head_eta_difference": head_eta_difference(self, other).to_dict() if same_heads else None,
            "source_tokens": [round(float(r.tokens[:, source].mean()), 3) for r in (self, other)],
            "same_lengths": bool(np.array_equal(self.tokens, other.tokens)),
        }

    def drift_from(self, reference: AttentionResult) -> dict[str, Floats]:
        own, exact = (np.divide(i, i + s) for i, s in (self.scores(), reference.scores()))
        return {"eta": own - exact}

    def warning(self, other: AttentionResult, controls: Sequence[str] = ()) -> str | None:
        """Eta depends more on the number of source tokens than on the quantity it should measure: `mean` rises and
        `sum` falls as the source gets longer."""
        warnings = []
        backends = [result.self_check.get("backend", "native") for result in (self, other)]
        if backends[0] != backends[1]:
            warnings.append(f"{self.name} was measured through {backends[0]} and {other.name} through {backends[1]}")
        if self.n_layers != other.n_layers:
            warnings.append(
                f"{self.name} has {self.n_layers} layers and {other.name} {other.n_layers}: they cannot be "
                "compared by layer"
            )
        source = SEGMENTS.index("source")
        if not np.array_equal(np.delete(self.tokens, source, 1), np.delete(other.tokens, source, 1)):
            warnings.append(
                f"{self.name} and {other.name} have prompts of different layouts, which by itself changes eta"
            )
        elif not np.array_equal(self.tokens, other.tokens):
            means = [f"{r.name} {r.tokens[:, source].mean():.1f}" for r in (self, other)]
            warnings.append(
                f"source lengths differ ({means[0]}, {means[1]} tokens on average), which by itself changes eta: read "
                f"`mean` and `sum` together{self._instead(other, controls)}"
            )
        return "; ".join(warnings) or None

    def _instead(self, other: AttentionResult, controls: Sequence[str]) -> str:
        """What to compare with if source lengths differ."""
        if controls:
            named = ", ".join(f"`{name}`" for name in controls)
            return f", and compare with the length-matched control{'s' if len(controls) > 1 else ''} {named}"
        return "" if self.is_control or other.is_control else ", and compare with a length-matched control"

    def _arrays(self) -> dict[str, Any]:
        optional = {"token": self.token_scores, "answer": self.answer}
        return super()._arrays() | {
            f"{prefix}_{name}": values
            for prefix, own in optional.items()
            if own is not None
            for name, values in vars(own).items()
        }

    @classmethod
    def _fields(cls, arrays: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
        def of(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): own for name, own in arrays.items() if name.startswith(prefix)}

        tokens, answer = of("token_"), of("answer_")
        sums = {name: values for name, values in arrays.items() if not name.startswith(("token_", "answer_"))}
        return super()._fields(sums, summary) | {
            "token_scores": TokenScores(**tokens) if tokens else None,
            "answer": AnswerSums(**answer) if answer else None,
        }

    def _instruction_and_source(self, norms: Floats) -> tuple[Floats, Floats]:
        """Both scores from the sums `[samples, x, segments]` under the conventions `span` and `segment`."""
        column = {name: norms[..., i] for i, name in enumerate(SEGMENTS)}
        count = {name: self.tokens[:, i, None].astype(np.float64) for i, name in enumerate(SEGMENTS)}
        instruction, n_instruction = column["instruction"], count["instruction"]
        if self.conventions.span == "instruction+template":
            instruction = instruction + column["template"] - column["first"]
            n_instruction = n_instruction + count["template"] - count["first"]
        if self.conventions.segment == "sum":
            return instruction, column["source"]
        return instruction / n_instruction, column["source"] / count["source"]

    def _aggregate(self, scores: tuple[Floats, Floats], mean: Callable[[Floats], Floats]) -> Floats:
        """Eta from S_instruction and S_source, `[samples, ...]` each; the function `mean` averages over samples."""
        instruction, source = scores
        # A head that attends to neither segment has no eta.
        with np.errstate(invalid="ignore"):
            if self.conventions.aggregate == "mean_of_ratios":
                return mean(instruction / (instruction + source))
            return mean(instruction) / (mean(instruction) + mean(source))

    def _segment_summary(self) -> dict[str, Any]:
        norms = self.norms if self.conventions.heads == "sum_then_norm" else self.head_norms.mean(2)
        means = norms.astype(np.float64).mean(0)
        return {
            name: {
                "tokens": {
                    "mean": round(float(self.tokens[:, i].mean()), 3),
                    "min": int(self.tokens[:, i].min()),
                    "max": int(self.tokens[:, i].max()),
                },
                "norm_sum": rounded(means[:, i]),
            }
            for i, name in enumerate(SEGMENTS)
        }


def _of_all(values: Floats) -> Floats:
    return values.mean(0)


def has_same_source_lengths(first: AttentionResult, second: AttentionResult) -> bool:
    """Whether every sample that is in both results has the same number of source tokens in both."""
    one, other = first.source_lengths(), second.source_lengths()
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[i] == other[i] for i in shared)


def eta_difference(first: AttentionResult, second: AttentionResult) -> Curve:
    """Eta of `second` minus eta of `first` by layer, with its 95 % interval over paired utterances.

    Both must hold the same samples in the same order.
    """
    return curve(second.eta().mean - first.eta().mean, second.left_out_eta() - first.left_out_eta())


def head_eta_difference(first: AttentionResult, second: AttentionResult) -> Tested:
    """Eta of `second` minus eta of `first` by head, `[layers, heads]`; p is computed from the samples' own ratios.

    Both must hold the same samples in the same order, and the same number of heads.
    """
    found = curve(
        second.head_eta().mean - first.head_eta().mean, second.left_out_head_eta() - first.left_out_head_eta()
    )
    with np.errstate(invalid="ignore"):
        ratios = [i / (i + s) for i, s in (first.head_scores(), second.head_scores())]
    return Tested(**vars(found), p=corrected_p(ratios[1] - ratios[0], first.clusters, seed=first.seed))
