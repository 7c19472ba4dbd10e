"""The attention probe's result: sums by sample, layer and segment, read under any convention without a forward pass."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsm_probe.bootstrap import cluster_weights, interval
from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.probes.conventions import Conventions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = "lsm-probe/attention/1"
SEGMENTS = ("system", "template", "instruction", "source", "first")
"""Last axis of the stored sums. `first` is position 0 where it is template, and is counted in `template` too."""
GROUPS = 6
"""The paper's figures average the layers into six groups."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Curve:
    """Eta by layer with its 95 % bootstrap interval, three arrays of `[layers]`."""

    mean: Floats
    ci_low: Floats
    ci_high: Floats

    def to_dict(self) -> dict[str, list[float]]:
        return {name: _rounded(getattr(self, name)) for name in ("mean", "ci_low", "ci_high")}


@dataclass(frozen=True)
class TokenScores:
    """A_j of single prompt tokens, samples one after another.

    Attributes:
        norms: `[layers, tokens]`, head form `sum_then_norm`.
        ids: token ids, `[tokens]`.
        segments: stored values of [`Segment`], `[tokens]`.
        offsets: where each sample begins and the last one ends, `[samples + 1]`.
    """

    norms: Floats
    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class AttentionResult:
    """Norm-based attention of one checkpoint on one set of samples.

    Norms carry the unit of the model's residual stream; only their ratios mean something across models.

    Attributes:
        norms: sums over a segment's tokens of A_j (the mean over generating rows of `|sum_h alpha v W_O|`),
            `[samples, layers, segments]`, segments as in `SEGMENTS`, accumulated in float32.
        head_norms: the same for the norm of each head, `[samples, layers, heads, segments]`.
        tokens: token counts, `[samples, segments]`.
        rows: generating rows (response tokens, EOS included where produced), `[samples]`.
        clusters: number of the utterance each sample speaks of, `[samples]`.
        samples: a dictionary for each sample: id, task, instruction, response and its token ids.
        checkpoint, data: identity and hashes.
        conventions: how this object reads itself; see [`with_conventions`].
        self_check: how well the same alpha, v and W_O reproduced the attention modules' own output.
        excluded: ids left out, by reason.
        seed: of the bootstrap.
        token_scores: only when asked for.
    """

    norms: Floats
    head_norms: Floats
    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    clusters: NDArray[np.int64]
    samples: list[dict[str, Any]]
    checkpoint: dict[str, Any]
    data: dict[str, Any]
    conventions: Conventions
    self_check: dict[str, Any]
    excluded: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 0
    token_scores: TokenScores | None = None
    versions: dict[str, str] = field(default_factory=lambda: package_versions())

    @property
    def name(self) -> str:
        return str(self.checkpoint["name"])

    @property
    def ids(self) -> list[str]:
        return [sample["id"] for sample in self.samples]

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
        mean = self._aggregate(np.ones((1, len(self.samples))))[0]
        low, high = interval(self.resampled_eta())
        return Curve(mean, low, high)

    def resampled_eta(self) -> Floats:
        """Eta by layer of each bootstrap resample, `[resamples, layers]`."""
        return self._aggregate(cluster_weights(self.clusters, self.seed))

    def head_eta(self) -> Floats:
        """Eta of single heads, `[layers, heads]`, under the conventions `segment`, `aggregate` and `span`."""
        instruction, source = self.head_scores()
        if self.conventions.aggregate == "mean_of_ratios":
            return (instruction / (instruction + source)).mean(0)
        return instruction.mean(0) / (instruction.mean(0) + source.mean(0))

    def eta_groups(self) -> list[dict[str, Any]]:
        """Eta averaged over `numpy.array_split(layers, 6)`, as in the paper's figures."""
        mean = self.eta().mean
        groups = [g for g in np.array_split(np.arange(self.n_layers), GROUPS) if len(g)]
        return [{"layers": [int(g[0]), int(g[-1])], "eta": float(mean[g].mean())} for g in groups]

    def responses(self) -> dict[str, list[int]]:
        """Response token ids by sample id, to be used again in another run."""
        return {sample["id"]: sample["response_ids"] for sample in self.samples}

    def source_lengths(self) -> dict[str, int]:
        """Number of source tokens by sample id."""
        return dict(zip(self.ids, self.tokens[:, SEGMENTS.index("source")].tolist(), strict=True))

    def subset(self, ids: list[str]) -> AttentionResult:
        """The result of these samples alone, in this order; single-token scores are left behind."""
        position = {sample: i for i, sample in enumerate(self.ids)}
        keep = np.array([position[i] for i in ids], dtype=np.int64)
        return replace(
            self,
            norms=self.norms[keep],
            head_norms=self.head_norms[keep],
            tokens=self.tokens[keep],
            rows=self.rows[keep],
            clusters=np.unique(self.clusters[keep], return_inverse=True)[1],
            samples=[self.samples[i] for i in keep],
            token_scores=None,
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each layer: eta with its interval, S_instruction and S_source (means over samples)."""
        instruction, source = self.scores()
        curve = self.eta()
        return pd.DataFrame(
            {
                "checkpoint": self.name,
                "layer": np.arange(self.n_layers),
                "eta": curve.mean,
                "ci_low": curve.ci_low,
                "ci_high": curve.ci_high,
                "S_instruction": instruction.mean(0),
                "S_source": source.mean(0),
            }
        )

    def head_frame(self) -> pd.DataFrame:
        """A row for each layer and head: its own eta, S_instruction and S_source (means over samples)."""
        instruction, source = self.head_scores()
        layers, heads = instruction.shape[1:]
        return pd.DataFrame(
            {
                "checkpoint": self.name,
                "layer": np.repeat(np.arange(layers), heads),
                "head": np.tile(np.arange(heads), layers),
                "eta": self.head_eta().ravel(),
                "S_instruction": instruction.mean(0).ravel(),
                "S_source": source.mean(0).ravel(),
            }
        )

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draws eta by layer with its interval; see [`lsm_probe.plots.eta.plot_eta`]."""
        from lsm_probe.plots.eta import plot_eta

        return plot_eta([self], ax=ax, **style)

    def to_dict(self) -> dict[str, Any]:
        """What `result.json` holds."""
        return {
            "schema": SCHEMA,
            "checkpoint": self.checkpoint,
            "data": self.data,
            "conventions": self.conventions.to_dict(),
            "self_check": self.self_check,
            "versions": self.versions,
            "seed": self.seed,
            "n_samples": len(self.samples),
            "excluded": self.excluded,
            "layers": list(range(self.n_layers)),
            "eta": self.eta().to_dict(),
            "eta_groups": [{**group, "eta": round(group["eta"], 6)} for group in self.eta_groups()],
            "eta_by_segment_convention": {
                segment: _rounded(self.with_conventions(segment=segment).eta().mean) for segment in ("mean", "sum")
            },
            "segments": self._segment_summary(),
        }

    def save(self, folder: str | Path) -> Path:
        """Writes `result.json`, `arrays.npz` and `samples.jsonl`; each appears whole or not at all."""
        folder = Path(folder)
        # A folder with a result.json has everything that belongs to it: gone first, written last.
        (folder / "result.json").unlink(missing_ok=True)
        arrays: dict[str, Any] = {
            "norms": self.norms,
            "head_norms": self.head_norms,
            "tokens": self.tokens,
            "rows": self.rows,
            "clusters": self.clusters,
        }
        if self.token_scores is not None:
            arrays |= {f"token_{name}": getattr(self.token_scores, name) for name in _TOKEN_FIELDS}
        with replacing(folder / "arrays.npz") as path:
            np.savez_compressed(path, **arrays)
        with replacing(folder / "samples.jsonl") as path:
            lines = [json.dumps(sample, ensure_ascii=False) for sample in self.samples]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(folder / "result.json", self.to_dict())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> AttentionResult:
        """Reads what [`save`] wrote.

        Raises:
            InputError: if the folder holds no result, or one of another schema.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            # Not splitlines(), which also cuts at characters that JSON strings may hold.
            lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
            samples = [json.loads(line) for line in lines]
            with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            if summary["schema"] != SCHEMA:
                raise InputError(f"{folder}/result.json has schema {summary['schema']!r}, not {SCHEMA!r}")
            scores = {name: arrays.pop(f"token_{name}") for name in _TOKEN_FIELDS if f"token_{name}" in arrays}
            return cls(
                **arrays,
                samples=samples,
                conventions=Conventions(**summary["conventions"]),
                token_scores=TokenScores(**scores) if scores else None,
                **{k: summary[k] for k in ("checkpoint", "data", "self_check", "excluded", "seed", "versions")},
            )
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{folder} holds no readable result of the attention probe: {reason}") from error

    def _instruction_and_source(self, norms: Floats) -> tuple[Floats, Floats]:
        """Both scores from sums `[samples, x, segments]` under the conventions `span` and `segment`."""
        column = {name: norms[..., i] for i, name in enumerate(SEGMENTS)}
        count = {name: self.tokens[:, i, None].astype(np.float64) for i, name in enumerate(SEGMENTS)}
        instruction, n_instruction = column["instruction"], count["instruction"]
        if self.conventions.span == "instruction+template":
            instruction = instruction + column["template"] - column["first"]
            n_instruction = n_instruction + count["template"] - count["first"]
        if self.conventions.segment == "sum":
            return instruction, column["source"]
        return instruction / n_instruction, column["source"] / count["source"]

    def _aggregate(self, weights: NDArray[np.float64]) -> Floats:
        """Eta by layer for each row of sample weights `[draws, samples]`: `[draws, layers]`."""
        instruction, source = self.scores()
        if self.conventions.aggregate == "mean_of_ratios":
            return weights @ (instruction / (instruction + source)) / weights.sum(1, keepdims=True)
        drawn = weights @ instruction
        return drawn / (drawn + weights @ source)

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
                "norm_sum": _rounded(means[:, i]),
            }
            for i, name in enumerate(SEGMENTS)
        }


_TOKEN_FIELDS = ("norms", "ids", "segments", "offsets")


def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("lsm-probe", "torch", "transformers", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def write_json(path: Path, content: Any) -> None:
    """Writes JSON that diffs well: indented, lists of numbers on one line."""
    with replacing(path) as temporary:
        temporary.write_text(_dumps(content) + "\n", encoding="utf-8")


def _dumps(content: Any, indent: str = "") -> str:
    if isinstance(content, dict) and content:
        inner = indent + "  "
        items = [f"{inner}{json.dumps(str(k))}: {_dumps(v, inner)}" for k, v in content.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _rounded(values: Floats) -> list[float]:
    """Six decimals: well below the float32 noise of eta across machines, and short to read."""
    return [round(float(value), 6) for value in values]
