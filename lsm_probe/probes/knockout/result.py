"""The knockout probe's result: the fall in log-probability by segment and window of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsm_probe.models.segments import Segment
from lsm_probe.runner.conventions import Choices
from lsm_probe.runner.multiple_testing import SIGNIFICANT, Tested, corrected_p
from lsm_probe.runner.result import Curve, Floats, MeasurementResult, curve, rounded

SEGMENTS = (Segment.INSTRUCTION, Segment.SOURCE)
"""The segments that are masked, in the order of the stored arrays."""


@dataclass(frozen=True)
class KnockoutConventions(Choices):
    """What was masked, and which response was measured.

    Attributes:
        window: number of layers masked together.
        response: the model's own `generated` response or the `reference`.
    """

    window: int = 5
    response: Literal["generated", "reference"] = "generated"


@dataclass(frozen=True, kw_only=True)
class KnockoutResult(MeasurementResult):
    """The fall in the response's log-probability without the instruction, and without the source.

    Attributes:
        log_prob: mean log-probability of the response's tokens without masking, `[samples]`, nats per token, float32.
        fall: fall in it with a segment masked in a window of layers, `[samples, segments, layers]`, by the window's
            middle layer, segments as in `SEGMENTS`.
        fall_all_layers: the same with the segment masked in all layers, `[samples, segments]`.
        fall_heads: the same with a segment masked for one head of one layer, `[samples, segments, layers, heads]`,
            layers as in `head_layers`.
        head_layers: the layers whose heads were masked one by one; empty unless requested.
        conventions: what was masked.
        self_check: how well alpha (0 where masked), v and W_O reproduced the attention modules' own output.
    """

    NAME: ClassVar[str] = "knockout"
    BY_SAMPLE: ClassVar[tuple[str, ...]] = ("log_prob", "fall", "fall_all_layers", "fall_heads")
    PLOT: ClassVar[str] = "lsm_probe.probes.knockout.plot:plot_falls"
    TABLE: ClassVar[str] = "lsm_probe.probes.knockout.tables:knockout_table"

    log_prob: Floats
    fall: Floats
    fall_all_layers: Floats
    fall_heads: Floats
    head_layers: list[int]
    conventions: KnockoutConventions
    self_check: dict[str, Any]

    @property
    def n_layers(self) -> int:
        return self.fall.shape[2]

    def falls(self, segment: Segment) -> Curve:
        """Mean fall by layer with its interval, `[layers]`, nats per token."""
        return self.mean(self._falls()[:, SEGMENTS.index(segment)])

    def fall_in_all_layers(self, segment: Segment) -> Curve:
        """Mean fall with the segment masked in every layer, with its interval, nats per token."""
        return self.mean(self.fall_all_layers[:, SEGMENTS.index(segment)].astype(np.float64))

    def influence_notes(self) -> list[str]:
        """A sentence for each mean fall over all layers that is decided by a single outlying utterance."""
        notes = [
            self.influence_note(f"the fall without the {segment.name.lower()}", self.fall_all_layers[:, i])
            for i, segment in enumerate(SEGMENTS)
        ]
        return [note for note in notes if note]

    def causal_eta(self) -> Curve:
        """`fall_i / (fall_i + fall_s)` of the means by layer, NaN where either is not above 0.

        The interval stays between 0 and 1. If a fall is below 0 when some utterance is left out, it counts as 0 there.
        If both falls are, the interval is NaN.
        """
        falls, left_out = self._falls(), self.leave_one_out(self._falls())
        defined = (falls.mean(0) > 0).all(0)
        with np.errstate(invalid="ignore"):
            eta, etas = (
                np.where(defined, of[..., 0, :] / of.sum(-2), np.nan) for of in (falls.mean(0), left_out.clip(0))
            )
        return curve(eta, etas).clipped(0, 1)

    def head_falls(self, segment: Segment) -> Tested:
        """Mean fall with the segment masked for one head, `[layers, heads]`, layers as in `head_layers`, nats per
        token; p tests for a fall above 0."""
        return self._tested(self._head_falls()[:, SEGMENTS.index(segment)])

    def head_kinds(self) -> NDArray[np.str_]:
        """The kind of each head, `[layers, heads]`, layers as in `head_layers`.

        `source`: masking the source for this head lowers the log-probability of the response, by more than masking the
        instruction, which has no effect. If the source is speech, this is a **speech-anchor head**. `instruction`: the
        reverse. `both`: masking either has an effect. Empty: neither has an effect. An effect has p below 0.05,
        corrected for the number of heads (see [`corrected_p`]).
        """
        instruction, source = np.moveaxis(self._head_falls(), 1, 0)
        i_hurts, s_hurts, i_more, s_more = (
            self._tested(falls).p < SIGNIFICANT
            for falls in (instruction, source, instruction - source, source - instruction)
        )
        kinds = np.where(i_hurts & s_hurts, "both", "").astype("<U11")
        kinds[i_hurts & ~s_hurts & i_more] = "instruction"
        kinds[s_hurts & ~i_hurts & s_more] = "source"
        return kinds

    def head_frame(self) -> pd.DataFrame:
        """A row for each layer and head: both falls with interval and corrected p, and its kind (see [`head_kinds`]).

        `.sort_values("fall_source", ascending=False)` ranks the heads.
        """
        heads = self.fall_heads.shape[3]
        columns: dict[str, Any] = {
            "checkpoint": self.name,
            "layer": np.repeat(np.array(self.head_layers, dtype=np.int64), heads),
            "head": np.tile(np.arange(heads), len(self.head_layers)),
        }
        for segment in SEGMENTS:
            name, found = f"fall_{segment.name.lower()}", self.head_falls(segment)
            columns |= {**found.columns(name), f"{name}_p": found.p.ravel()}
        return pd.DataFrame({**columns, "kind": self.head_kinds().ravel()})

    def headline(self) -> str:
        instruction, source = (self.fall_in_all_layers(segment) for segment in SEGMENTS)
        return f"nats per token lost without the instruction {instruction}, without the source {source}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each layer: falls and causal eta with their intervals."""
        columns: dict[str, Any] = {"checkpoint": self.name, "layer": np.arange(self.n_layers)}
        for segment in SEGMENTS:
            columns |= self.falls(segment).columns(f"fall_{segment.name.lower()}")
        return pd.DataFrame(columns | self.causal_eta().columns("causal_eta"))

    def summary(self) -> dict[str, Any]:
        return {
            "self_check": self.self_check,
            "unit": "nats per response token",
            "log_prob": rounded(self.log_prob.astype(np.float64).mean()),
            "layers": list(range(self.n_layers)),
            **{f"fall_{s.name.lower()}": self.falls(s).to_dict() for s in SEGMENTS},
            "causal_eta": self.causal_eta().to_dict(),
            "all_layers": {s.name.lower(): self.fall_in_all_layers(s).to_dict() for s in SEGMENTS},
            "heads": self._head_summary() if self.head_layers else None,
        }

    def differences(self, other: KnockoutResult) -> dict[str, Any]:
        same_depth = self.n_layers == other.n_layers
        gained = other._falls() - self._falls() if same_depth else None
        whole = (other.fall_all_layers - self.fall_all_layers).astype(np.float64)
        return {
            **{
                f"fall_{s.name.lower()}_difference": (None if gained is None else self.mean(gained[:, i]).to_dict())
                for i, s in enumerate(SEGMENTS)
            },
            "all_layers_difference": {s.name.lower(): self.mean(whole[:, i]).to_dict() for i, s in enumerate(SEGMENTS)},
            "heads_difference": self._head_differences(other),
            "same_responses": self.responses() == other.responses(),
        }

    def drift_from(self, reference: KnockoutResult) -> dict[str, Floats]:
        changes: dict[str, Floats] = {"fall (nats per token)": self._falls() - reference._falls()}
        if self.head_layers:
            changes["fall of a head (nats per token)"] = self._head_falls() - reference._head_falls()
        return changes

    def warning(self, other: KnockoutResult, controls: Sequence[str] = ()) -> str | None:
        warnings = []
        if self.n_layers != other.n_layers:
            warnings.append(
                f"{self.name} has {self.n_layers} layers and {other.name} {other.n_layers}: they cannot be "
                "compared by layer"
            )
        if self.responses() != other.responses():
            warnings.append(
                f"{self.name} and {other.name} are measured on different responses: also compare them on the "
                "same ones (--responses FOLDER, or --response reference)"
            )
        return "; ".join(warnings) or None

    def _falls(self) -> Floats:
        return self.fall.astype(np.float64)

    def _head_falls(self) -> Floats:
        return self.fall_heads.astype(np.float64)

    def _tested(self, values: Floats, side: Literal["greater", "both"] = "greater") -> Tested:
        """The mean of `values [samples, layers, heads]` over samples."""
        return Tested(**vars(self.mean(values)), p=corrected_p(values, self.clusters, seed=self.seed, side=side))

    def _head_summary(self) -> dict[str, Any]:
        kinds = self.head_kinds()
        named = {kind: np.argwhere(kinds == kind) for kind in ("source", "instruction", "both")}
        return {
            "layers": self.head_layers,
            **{f"fall_{s.name.lower()}": self.head_falls(s).to_dict() for s in SEGMENTS},
            "kinds": {kind: [[self.head_layers[i], int(h)] for i, h in found] for kind, found in named.items()},
        }

    def _head_differences(self, other: KnockoutResult) -> dict[str, Any] | None:
        """Differences by head, if both results have the same heads."""
        mine, its = self._head_falls(), other._head_falls()
        if not self.head_layers or self.head_layers != other.head_layers or mine.shape != its.shape:
            return None
        gained = {f"fall_{s.name.lower()}": (its - mine)[:, i] for i, s in enumerate(SEGMENTS)}
        return {
            "layers": self.head_layers,
            **{name: self._tested(values, "both").to_dict() for name, values in gained.items()},
        }

    @classmethod
    def _fields(cls, arrays: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
        heads = summary.get("heads")  # absent in results of versions that did not mask single heads
        arrays = {"fall_heads": np.zeros((*arrays["fall"].shape[:2], 0, 0), np.float32), **arrays}
        return super()._fields(arrays, summary) | {"head_layers": heads["layers"] if heads else []}
