"""The alignment probe's result: a speech and a text vector per sample and state, and how similar the sets are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsm_probe.errors import InputError
from lsm_probe.instruments import similarity
from lsm_probe.runner.conventions import Choices
from lsm_probe.runner.result import Curve, Floats, MeasurementResult, curve, rounded

ALPHA = 0.05
"""At a p-value of MMD as large as this, the two sets do not differ significantly."""
CURVES = (
    "paired_cosine",
    "unpaired_cosine",
    "cosine_gap",
    "standardised_cosine",
    "cka",
    "standardised_cka",
    "retrieval",
    "retrieval_speech_to_text",
    "retrieval_text_to_speech",
    "standardised_retrieval",
    "centroid_distance",
)
"""The numbers by state that have an interval."""
_SHARES = tuple(name for name in CURVES if "retrieval" in name)
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class AlignmentConventions(Choices):
    """What was averaged. Defaults are listed first; another choice needs another run.

    Attributes:
        segment: the positions that a vector averages: the `source`, the whole `prompt`, or the tokens of the
            `response`.
        response: which response: the model's own `generated` one or the `reference`; `none` if the segment needs none.
    """

    segment: Literal["source", "prompt", "response"] = "source"
    response: Literal["none", "generated", "reference"] = "none"


@dataclass(frozen=True, kw_only=True)
class AlignmentResult(MeasurementResult):
    """An LSM's hidden states for speech and for its transcript, and how similar the two sets are in each state.

    | name in [`curves`] | meaning |
    |---|---|
    | `paired_cosine`, `unpaired_cosine` | cosine of speech with its own transcript, and with other transcripts |
    | `cosine_gap` | their difference: the similarity that is specific to the sample |
    | `cka` | debiased linear CKA: whether distances between utterances match those between transcripts |
    | `retrieval`, `retrieval_speech_to_text`, `..._text_to_speech` | how often the own pair is the nearest, R@1 |
    | `standardised_cosine`, `..._cka`, `..._retrieval` | the same, every dimension of a set at mean 0, variance 1 |
    | `centroid_distance` | distance of the two means, in units of the spread within the sets |

    If the standardised numbers are larger, an offset between the sets or a few large dimensions hide their similarity
    ([`standardised`]). CKA needs no common space: an untrained connector preserves enough of the encoder's geometry for
    a CKA of 0.4 in state 0 (measured on 60 spoken commands). So compare CKA with that of `builtin:untrained`.

    Intervals are 95 % over utterances; the means and variances behind the standardised numbers always come from all
    samples. Recordings of the same words count as one utterance (`clusters`).

    Attributes:
        speech: mean state of the segment under speech, `[samples, states, llm_dim]`, float32.
        text: the same with the transcript in the source slot.
        layers: which states these are: 0 is the input of layer 0, l the output of layer l - 1 (layers are counted from
            0, as in the results of the other probes).
        perplexity: of the t-SNE.
        plot_layer: the state that is plotted by default; not stored.
    """

    NAME: ClassVar[str] = "alignment"
    BY_SAMPLE: ClassVar[tuple[str, ...]] = ("speech", "text")
    PLOT: ClassVar[str] = "lsm_probe.probes.alignment.plot:plot_plane"
    TABLE: ClassVar[str] = "lsm_probe.probes.alignment.tables:alignment_table"

    speech: Floats
    text: Floats
    layers: list[int]
    perplexity: float
    conventions: AlignmentConventions
    plot_layer: int = -1

    @property
    def n_utterances(self) -> int:
        return len(np.unique(self.clusters))

    def curves(self) -> dict[str, Curve]:
        """The numbers that have an interval, `[states]`, by the names in `CURVES`; NaN where a number is undefined."""
        return self._curves

    def chance(self) -> float:
        """Retrieval at chance level: the mean over samples of 1 / candidates."""
        own = np.bincount(self.clusters)[self.clusters]
        return float((1 / (len(self.clusters) - own + 1)).mean())

    def centroid_floor(self) -> float:
        """`sqrt(2 / utterances)`: the distance that noise alone gives two unrelated sets of the same distribution."""
        return float(np.sqrt(2 / self.n_utterances))

    def mmd(self) -> dict[str, Doubles]:
        """Squared MMD, its permutation p-value and the kernel's width: `squared`, `p_value`, `sigma`, `[states]` each.

        The p-value is not corrected for the number of states: of 31 states without a difference, one or two fall below
        0.05 on average.
        """
        return {name: np.array([getattr(mmd, name) for mmd in self._mmd]) for name in similarity.Mmd._fields}

    def embed_2d(self, layer: int = -1) -> tuple[Doubles, Doubles]:
        """Joint t-SNE of one state: the coordinates of speech and of text, each `[samples, 2]`.

        Args:
            layer: number of a state; a negative number counts back from the last kept state.

        Raises:
            InputError: that state was not kept, or the samples are too few for the perplexity.
        """
        i = self._place(layer)
        if i not in self._planes:
            both = self.speech[:, i], self.text[:, i]
            self._planes[i] = similarity.joint_tsne(*both, perplexity=self.perplexity, seed=self.seed)
        return self._planes[i]

    def state(self, layer: int = -1) -> int:
        """The number of a state; a negative `layer` counts back from the last kept state.

        Raises:
            InputError: that state was not kept.
        """
        return self.layers[self._place(layer)]

    def headline(self) -> str:
        return f"retrieval in state {self.layers[-1]} {self.curves()['retrieval'].at(-1)} (chance {self.chance():.3g})"

    def to_frame(self) -> pd.DataFrame:
        """A row for each state: all numbers; `_low` and `_high` are the ends of their intervals."""
        columns: dict[str, Any] = {"checkpoint": self.name, "state": self.layers}
        for name, numbers in self.curves().items():
            columns |= numbers.columns(name)
        columns |= {f"mmd_{name}": values for name, values in self.mmd().items()}
        return pd.DataFrame({**columns, "retrieval_chance": self.chance(), "centroid_floor": self.centroid_floor()})

    def summary(self) -> dict[str, Any]:
        numbers = {name: values.to_dict() for name, values in self.curves().items()}
        # The p-value can be no lower: swapping all utterances, or those that were not swapped, gives the same.
        least_p_value = max(1 / (1 + similarity.PERMUTATIONS), 2.0 ** (1 - self.n_utterances))
        return {
            "states": self.layers,
            "perplexity": self.perplexity,
            "n_utterances": self.n_utterances,
            **numbers,
            "retrieval_chance": round(self.chance(), 6),
            "centroid_floor": round(self.centroid_floor(), 6),
            "centroid_note": "noise alone gives two unrelated sets of one distribution about the floor; near it, the "
            "interval lies above the true distance",
            "mmd": {
                **{name: rounded(values) for name, values in self.mmd().items()},
                "least_p_value": round(least_p_value, 6),
            },
        }

    def differences(self, other: AlignmentResult) -> dict[str, Any]:
        """Differences by state, on the same utterances in each draw; None if the results hold different states."""
        if self.layers != other.layers:
            return {"states": None, **dict.fromkeys(f"{name}_difference" for name in CURVES)}
        differences = {f"{name}_difference": values.to_dict() for name, values in self._differences(other).items()}
        return {"states": self.layers, **differences}

    def warning(self, other: AlignmentResult, controls: Sequence[str] = ()) -> str | None:
        warnings = []
        if self.layers != other.layers:
            warnings.append(
                f"{self.name} has {len(self.layers)} states and {other.name} {len(other.layers)}, or of other "
                "layers: they cannot be compared by layer"
            )
        if self.conventions.segment == "response" and self.responses() != other.responses():
            warnings.append(
                f"{self.name} and {other.name} are measured on different responses: also compare them on the "
                "same ones (--responses FOLDER, or --response reference)"
            )
        return "; ".join(warnings) or None

    def _differences(self, other: AlignmentResult) -> dict[str, Curve]:
        """`other` minus this one, by the names in `CURVES`."""
        numbers = {
            name: (self.share_difference if name in _SHARES else self.mean)(other._by_sample[name] - values)
            for name, values in self._by_sample.items()
        }
        for name, (whole, left_out) in self._cka.items():
            other_whole, other_left_out = other._cka[name]
            numbers[name] = curve(other_whole - whole, other_left_out - left_out)
        (distance, left_out), (other_distance, other_left_out) = self._centroids, other._centroids
        numbers["centroid_distance"] = curve(other_distance - distance, other_left_out - left_out)
        return {name: numbers[name] for name in CURVES}

    def _place(self, layer: int) -> int:
        """Index of a state among the kept states."""
        if -len(self.layers) <= layer < 0:
            return len(self.layers) + layer
        if layer not in self.layers:
            raise InputError(
                f"{self.name}: state {layer} was not kept; there are {', '.join(map(str, self.layers))} "
                "(--layer -1 is the last)"
            )
        return self.layers.index(layer)

    def _by_state(self, function: Callable[[Floats, Floats], Any], *, standardised: bool = False) -> list[Any]:
        """Apply a function to the two sets, `[samples, llm_dim]` each, in every state."""
        states = [(self.speech[:, i], self.text[:, i]) for i in range(len(self.layers))]
        return [function(*map(similarity.standardised, both) if standardised else both) for both in states]

    # A frozen dataclass lets cached_property write into its __dict__; replace() and subset() start afresh.

    @cached_property
    def _curves(self) -> dict[str, Curve]:
        numbers = {
            name: (self.share if name in _SHARES else self.mean)(values) for name, values in self._by_sample.items()
        }
        for name, (whole, left_out) in self._cka.items():
            numbers[name] = curve(whole, left_out).clipped(-1, 1)
        numbers["centroid_distance"] = curve(*self._centroids).clipped(0, np.inf)
        return {name: numbers[name] for name in CURVES}

    @cached_property
    def _by_sample(self) -> dict[str, Doubles]:
        """The numbers that each single sample has, `[samples, states]`, by name."""

        def unpaired_cosine(x: Floats, y: Floats) -> Doubles:
            return similarity.unpaired_cosine(x, y, self.clusters)

        def hits(x: Floats, y: Floats) -> Doubles:
            return np.stack(similarity.retrieval(x, y, self.clusters))

        paired, unpaired = (
            np.stack(self._by_state(cosine), 1) for cosine in (similarity.paired_cosine, unpaired_cosine)
        )
        to_text, to_speech = np.stack(self._by_state(hits), 2)
        return {
            "paired_cosine": paired,
            "unpaired_cosine": unpaired,
            "cosine_gap": paired - unpaired,
            "standardised_cosine": np.stack(self._by_state(similarity.paired_cosine, standardised=True), 1),
            "retrieval": (to_text + to_speech) / 2,
            "retrieval_speech_to_text": to_text,
            "retrieval_text_to_speech": to_speech,
            "standardised_retrieval": np.stack(self._by_state(hits, standardised=True), 2).mean(0),
        }

    @cached_property
    def _cka(self) -> dict[str, tuple[Doubles, Doubles]]:
        """CKA `[states]`, and CKA without each utterance in turn `[utterances, states]`, by name."""

        def both(x: Floats, y: Floats) -> tuple[float, Doubles]:
            return similarity.debiased_cka(x, y, self.clusters), similarity.jackknife_cka(x, y, self.clusters)

        found = {}
        for name, standardised in (("cka", False), ("standardised_cka", True)):
            whole, left_out = zip(*self._by_state(both, standardised=standardised), strict=True)
            found[name] = np.array(whole), np.stack(left_out, 1)
        return found

    @cached_property
    def _centroids(self) -> tuple[Doubles, Doubles]:
        """The distance `[states]`, and the distance without each utterance in turn `[utterances, states]`."""
        weights = np.not_equal.outer(np.arange(self.n_utterances), self.clusters).astype(np.float64)
        left_out = self._by_state(lambda x, y: similarity.centroid_distance(x, y, weights))
        return np.array(self._by_state(similarity.centroid_distance)), np.stack(left_out, 1)

    @cached_property
    def _mmd(self) -> list[similarity.Mmd]:
        return self._by_state(lambda x, y: similarity.mmd(x, y, self.clusters, seed=self.seed))

    @cached_property
    def _planes(self) -> dict[int, tuple[Doubles, Doubles]]:
        """Results that [`embed_2d`] has already computed, by index of the state."""
        return {}

    def drift_from(self, reference: AlignmentResult) -> dict[str, Floats]:
        own, exact = (np.stack(each._by_state(similarity.paired_cosine), 1) for each in (self, reference))
        return {"paired cosine": own - exact}

    @classmethod
    def _fields(cls, arrays: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
        return super()._fields(arrays, summary) | {"layers": summary["states"]}
