"""The importance probe's result: importance of every matrix by sample, summed or averaged by layer or by module."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr

from lsm_probe.probes.importance.masks import Masks, clustering, jaccard
from lsm_probe.runner.conventions import Choices
from lsm_probe.runner.result import Curve, Floats, MeasurementResult, curve, rounded

_COLUMNS = ("name", "layer", "module", "shape")


@dataclass(frozen=True)
class ImportanceConventions(Choices):
    """How gradients become importance. Defaults are listed first.

    Attributes:
        mode: `abs` is the mean over samples of `|theta * gradient|`; `signed` is `|theta * mean gradient|`, in which
            samples can cancel each other out.
        modality: `own` is the checkpoint's own input; `text` gives its LLM the transcript.
        response: the `reference`, or the model's own `generated` response.
    """

    mode: Literal["abs", "signed"] = "abs"
    modality: Literal["own", "text"] = "own"
    response: Literal["reference", "generated"] = "reference"


@dataclass(frozen=True, kw_only=True)
class ImportanceResult(MeasurementResult):
    """Importance of one checkpoint's weights, in nats: the first-order change of the loss if a weight were 0.

    Attributes:
        sums: sum over each parameter's weights of `|theta * gradient|` for each sample, `[samples, parameters]`,
            float64; NaN for parameters that do not affect the loss (the connector, if the source is text).
        parameters: name, layer (None outside the layers), module and shape of each.
        not_trained: parameters without importance (frozen ones, the encoder): number of weights by part of the model.
        signed: sum over each parameter's weights of `|theta * mean gradient|`, `[parameters]`; with `mode="signed"`.
        masks: the most important weights, if requested.
        ablation: perplexity with a share of each matrix set to 0, if requested.
        conventions: how this object computes importance.
    """

    NAME: ClassVar[str] = "importance"
    BY_SAMPLE: ClassVar[tuple[str, ...]] = ("sums",)
    PLOT: ClassVar[str] = "lsm_probe.probes.importance.plot:plot_layers"
    TABLE: ClassVar[str] = "lsm_probe.probes.importance.tables:importance_table"

    sums: Floats
    parameters: list[dict[str, Any]]
    not_trained: dict[str, int]
    conventions: ImportanceConventions
    signed: Floats | None = None
    masks: Masks | None = None
    ablation: dict[str, Any] | None = None

    @property
    def n_layers(self) -> int:
        return 1 + max(p["layer"] for p in self.parameters if p["layer"] is not None)

    @property
    def modules(self) -> list[str]:
        """Modules of a layer that have weight matrices, in the order of the first layer."""
        return list(dict.fromkeys(p["module"] for p in self.parameters if _in_layer(p)))

    def by_layer(self, reduce: Literal["sum", "mean"] = "sum") -> Curve:
        """I_layer: importance of each layer's weight matrices (no norms, no biases), `[layers]`, with its interval.

        `signed` importance has no interval, because samples are summed before the absolute value is taken.
        """
        members = (self._layers()[:, None] == np.arange(self.n_layers)).astype(np.float64)
        if reduce == "mean":
            members /= (members * self._sizes()[:, None]).sum(0)
        return self._curve(members)

    def by_module(self, reduce: Literal["sum", "mean"] = "sum") -> Floats:
        """Importance of each matrix, `[layers, modules]`; NaN where a layer lacks the module."""
        table = np.full((self.n_layers, len(self.modules)), np.nan)
        values = self.values() / (self._sizes() if reduce == "mean" else 1)
        for parameter, value in zip(self.parameters, values, strict=True):
            if _in_layer(parameter):
                table[parameter["layer"], self.modules.index(parameter["module"])] = value
        return table

    def values(self) -> Floats:
        """Importance of each parameter, summed over its weights, `[parameters]`, under `mode`."""
        return self.sums.mean(0) if self.signed is None else self.signed

    def distribution(self) -> Floats:
        """I_layer as shares of all layers, `[layers]`."""
        by_layer = self.by_layer().mean
        return by_layer / by_layer.sum()

    def share_by_layer(self) -> Curve:
        """Each layer's share of the total, `[layers]`, with its interval; `signed` importance has no interval."""
        point = self.distribution()
        if self.signed is not None:
            return Curve(point, np.full_like(point, np.nan), np.full_like(point, np.nan))
        return curve(point, self._left_out_distribution()).clipped(0, 1)

    def headline(self) -> str:
        share = self.share_by_layer()
        peak = int(share.mean.argmax())
        return f"layer {peak} has the largest share of the importance, {share.at(peak)}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each parameter: sum and mean over its weights, with the interval of the sum."""
        found = self._curve(np.eye(len(self.parameters)))
        sizes = self._sizes()
        return pd.DataFrame(
            {
                "checkpoint": self.name,
                "parameter": [p["name"] for p in self.parameters],
                **{key: [p[key] for p in self.parameters] for key in ("layer", "module")},
                "weights": sizes.astype(int),
                **found.columns("sum", "ci_low", "ci_high"),
                "mean": found.mean / sizes,
            }
        )

    def summary(self) -> dict[str, Any]:
        outside = {p["name"]: v for p, v in zip(self.parameters, self.values(), strict=True) if p["layer"] is None}
        summary: dict[str, Any] = {
            "unit": "nats, summed over weights",
            "layers": list(range(self.n_layers)),
            "by_layer": self.by_layer().to_dict(),
            "share_of_layers": self.share_by_layer().to_dict(),
            "peak_layer": int(self.by_layer().mean.argmax()),
            "modules": self.modules,
            "by_module": rounded(self.by_module()),
            "outside_of_layers": {name: rounded(value) for name, value in outside.items()},
            "not_trained": self.not_trained,
            "ablation": self._finite_ablation(),
        }
        if self.masks is not None:
            found = clustering(self.masks)
            summary["masks"] = {
                "share": self.masks.share,
                "clustering": {a: float(np.mean([c[a] for c in found.values()])) for a in ("rows", "columns")},
            }
        return summary

    def _finite_ablation(self) -> dict[str, Any] | None:
        """The ablation's perplexities; None for one that is not finite."""
        if self.ablation is None:
            return None
        found = self.ablation["perplexity"].items()
        return {**self.ablation, "perplexity": {k: v if v is not None and np.isfinite(v) else None for k, v in found}}

    def differences(self, other: ImportanceResult) -> dict[str, Any]:
        """The shift from this result (such as the base LLM's) to `other` (such as a speech-tuned checkpoint's)."""
        if self.n_layers != other.n_layers:
            return {"shift": None}
        if (self.signed is None) != (other.signed is None):
            return self.unsigned().differences(other.unsigned())
        mine, theirs = self.distribution(), other.distribution()
        found: dict[str, Any] = {
            "share_difference": rounded(theirs - mine),
            "jensen_shannon": _divergence(mine, theirs),
            "rank_correlation": rounded(np.array(_rank_correlation(mine, theirs))),
            "peak_layer": [int(mine.argmax()), int(theirs.argmax())],
        }
        if self.signed is None and other.signed is None:
            drawn = [r._left_out_distribution() for r in (self, other)]
            found["share_difference"] = curve(theirs - mine, drawn[1] - drawn[0]).to_dict()
            for name, compare, least, most in (
                ("jensen_shannon", _divergence, 0, np.log(2)),
                ("rank_correlation", _rank_correlation, -1, 1),
            ):
                left_out = np.array([compare(a, b) for a, b in zip(*drawn, strict=True)])
                found[name] = curve(np.array(compare(mine, theirs)), left_out).clipped(least, most).to_dict()
        if self.masks is not None and other.masks is not None:
            overlap = jaccard(self.masks, other.masks)
            share = self.masks.share
            found["mask_overlap"] = {"mean": float(np.mean(list(overlap.values()))), "by_chance": share / (2 - share)}
        return {"shift": found}

    def drift_from(self, reference: ImportanceResult) -> dict[str, Floats]:
        own, exact = self._layer_sums(), reference._layer_sums()
        return {"importance of a layer (relative)": own / exact - 1}

    def warning(self, other: ImportanceResult, controls: Sequence[str] = ()) -> str | None:
        if self.n_layers == other.n_layers:
            if self.responses() == other.responses():
                return None
            return (
                f"{self.name} and {other.name} are measured on different responses: compare them on the same ones "
                "(--response reference)"
            )
        return f"{self.name} has {self.n_layers} layers and {other.name} {other.n_layers}: the shift cannot be computed"

    def subset(self, ids: list[str]) -> ImportanceResult:
        """The result of these samples alone. Sums over samples (`signed`, masks) need all samples."""
        found = super().subset(ids)
        return found if len(ids) == len(self.samples) else replace(found.unsigned(), masks=None, ablation=None)

    def unsigned(self) -> ImportanceResult:
        """The same result read as `abs`, which is always stored."""
        return replace(self, signed=None, conventions=replace(self.conventions, mode="abs"))

    def save(self, folder: str | Path) -> Path:
        """Writes `result.json`, `arrays.npz`, `samples.jsonl` and, where there are masks, `masks.npz`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "masks.npz"):  # removed first; result.json is written last
            (folder / name).unlink(missing_ok=True)
        if self.masks is not None:
            self.masks.save(folder / "masks.npz")
        return super().save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> ImportanceResult:
        result = super().load(folder)
        path = Path(folder) / "masks.npz"
        return replace(result, masks=Masks.load(path)) if path.exists() else result

    def _arrays(self) -> dict[str, Any]:
        parameters = {key: np.array([str(p[key]) for p in self.parameters]) for key in _COLUMNS}
        signed = {} if self.signed is None else {"signed": self.signed}
        return super()._arrays() | {f"parameter_{key}": v for key, v in parameters.items()} | signed

    @classmethod
    def _fields(cls, arrays: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
        columns = zip(*(arrays[f"parameter_{key}"].tolist() for key in _COLUMNS), strict=True)
        parameters = [
            {
                "name": name,
                "layer": None if layer == "None" else int(layer),
                "module": module,
                "shape": json.loads(shape),
            }
            for name, layer, module, shape in columns
        ]
        own = {name: values for name, values in arrays.items() if not name.startswith("parameter_")}
        return super()._fields(own, summary) | {"parameters": parameters, "masks": None}

    def _sizes(self) -> Floats:
        return np.array([np.prod(p["shape"]) for p in self.parameters], dtype=np.float64)

    def _curve(self, members: NDArray[np.float64]) -> Curve:
        """Weighted sums over parameters with intervals: `members [parameters, x]` -> `[x]`."""
        if self.signed is not None:
            point = np.where(members, self.signed[:, None] * members, 0).sum(0)
            return Curve(point, np.full_like(point, np.nan), np.full_like(point, np.nan))
        sums = np.stack([np.where(column, self.sums * column, 0).sum(1) for column in members.T], 1)
        return self.mean(sums)

    def _layers(self) -> NDArray[np.int64]:
        """The layer of each parameter, `[parameters]`; -1 for parameters that are not a weight matrix of a layer."""
        return np.array([p["layer"] if _in_layer(p) else -1 for p in self.parameters])

    def _layer_sums(self) -> Floats:
        """Importance of each layer's weight matrices, `[samples, layers]`."""
        return np.stack([self.sums[:, self._layers() == layer].sum(1) for layer in range(self.n_layers)], 1)

    def _left_out_distribution(self) -> Floats:
        """Each layer's share without each utterance in turn, `[utterances, layers]`."""
        left_out = self.leave_one_out(self._layer_sums())
        return left_out / left_out.sum(1, keepdims=True)


def _in_layer(parameter: Mapping[str, Any]) -> bool:
    """Whether the parameter is a weight matrix of a decoder layer."""
    return parameter["layer"] is not None and len(parameter["shape"]) >= 2


def _divergence(first: Floats, second: Floats) -> float:
    """Jensen-Shannon divergence in nats, between 0 and log 2."""
    return float(jensenshannon(first, second) ** 2)


def _rank_correlation(first: Floats, second: Floats) -> float:
    return float(spearmanr(first, second).statistic)
