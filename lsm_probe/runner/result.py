"""The base class of all results: identity, files, samples, intervals, and defaults for how a result is shown."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.intervals import (
    METHOD,
    Influence,
    interval,
    leave_one_out,
    most_influential,
    share_difference_interval,
    share_interval,
)
from lsm_probe.runner.conventions import Choices
from lsm_probe.runner.identity import SCHEMA_VERSION, CheckpointIdentity, read_schema, upgrade_identity
from lsm_probe.runner.precision import Drift, PrecisionCheck, describe, largest_change, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = 6
"""Number of groups of layers; the paper's figures average the layers into six groups."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Curve:
    """A number (by layer, or single) with its 95 % interval: three arrays of one shape. NaN means no interval."""

    mean: Floats
    ci_low: Floats
    ci_high: Floats

    def at(self, place: int) -> Curve:
        """The number at one index of the first axis."""
        return Curve(self.mean[place], self.ci_low[place], self.ci_high[place])

    def clipped(self, least: float, most: float) -> Curve:
        """The same curve with its interval limited to the range of the number."""
        return Curve(self.mean, np.clip(self.ci_low, least, most), np.clip(self.ci_high, least, most))

    def __str__(self) -> str:
        """A single number with its interval: `0.31 [0.28, 0.34]`; only the number if there is no interval."""
        if np.ndim(self.mean):
            return repr(self)
        numbers = [float(end) for end in (self.mean, self.ci_low, self.ci_high)]
        digits = 2 if np.nanmax(np.abs(numbers), initial=0) >= 0.1 else 4
        mean, low, high = (f"{round(number, digits) + 0.0:.{digits}f}" for number in numbers)  # + 0: no -0.00
        return mean if np.isnan(numbers[1:]).any() else f"{mean} [{low}, {high}]"

    def to_dict(self) -> dict[str, Any]:
        return {name: rounded(getattr(self, name)) for name in ("mean", "ci_low", "ci_high")}

    def columns(self, mean: str, low: str | None = None, high: str | None = None) -> dict[str, Floats]:
        """Columns of a frame under these names; the ends of the interval are called `mean_low` and `mean_high`."""
        ends = {mean: self.mean, low or f"{mean}_low": self.ci_low, high or f"{mean}_high": self.ci_high}
        return {name: values.ravel() for name, values in ends.items()}


def package_versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on, if installed: results can be read without torch."""
    versions = {"python": platform.python_version()}
    for package in ("lsm-probe", "torch", "transformers", "numpy"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


@dataclass(frozen=True, kw_only=True)
class MeasurementResult:
    """What was measured of one checkpoint on one set of samples.

    A measurement's class adds the arrays it stores, and lists in `BY_SAMPLE` those with samples as first axis. If it
    does nothing else, each of these arrays is a value (or a curve over layers) of each sample. The class then has a
    summary, paired differences, a frame and a plot of their means. Other classes override these methods.

    Attributes:
        clusters: index of the utterance of each sample, `[samples]`.
        samples: a dictionary for each sample: id, task, instruction, and the transcript (`text`) and the response if
            there are any. If a response starts with thinking, also `thinking_tokens` and the `answer` after it (None if
            the thinking is unfinished).
        checkpoint, data: identity and hashes.
        conventions: the choices behind the numbers, by name.
        excluded: ids of the samples left out, by reason.
        seed: of random draws, such as the signs of permutation tests.
        versions: of the packages that the numbers depend on.
        precision: for a result in half precision, the numbers of some samples in float32, if these were measured.
    """

    NAME: ClassVar[str]
    """The measurement's name, as on the command line."""
    BY_SAMPLE: ClassVar[tuple[str, ...]]
    PLOT: ClassVar[str | None] = None
    """`module:function` that draws results on axes: `function([result], ax=None, **style)`. It is a name, so that
    results can be read without matplotlib."""
    TABLE: ClassVar[str] = "lsm_probe.runner.defaults:frame_table"
    """`module:function` that makes the table for notebooks: `function([result])`."""

    clusters: NDArray[np.int64]
    samples: list[dict[str, Any]]
    checkpoint: CheckpointIdentity
    data: DataIdentity
    conventions: Any = field(default_factory=Choices)
    excluded: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=package_versions)
    precision: PrecisionCheck | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # `dataclass` would write one that prints all arrays
            cls.__repr__ = MeasurementResult.__repr__  # type: ignore[method-assign]

    def headline(self) -> str:
        """The most important number, with its 95 % interval: the end of `repr`. Empty if there is none.

        By default the mean of the first value in `BY_SAMPLE`, if it is one number for each sample.
        """
        values = getattr(self, self.BY_SAMPLE[0])
        if np.ndim(values) != 1:
            return ""
        return f"{self.BY_SAMPLE[0].replace('_', ' ')} {self.mean(values)}"

    def __repr__(self) -> str:
        line: str = resolve_name("lsm_probe.runner.notebook_view:result_line")(self)
        return line

    def _repr_html_(self) -> str:
        """The notebook view: its `repr`, a small table and a small figure."""
        html: str = resolve_name("lsm_probe.runner.notebook_view:result_html")(self)
        return html

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def is_control(self) -> bool:
        """Whether this is a text LLM whose transcripts were repeated or cut to given lengths."""
        return self.checkpoint.control is not None

    @property
    def ids(self) -> list[str]:
        return [sample["id"] for sample in self.samples]

    @property
    def counted(self) -> str:
        """Number of samples and of utterances; the latter determines how wide intervals are."""
        n_samples, n_utterances = len(self.samples), len(np.unique(self.clusters))
        return f"{n_samples} samples" + (f" of {n_utterances} utterances" if n_utterances < n_samples else "")

    def responses(self) -> dict[str, list[int]]:
        """Response token ids by sample id, for use in another run."""
        return {sample["id"]: sample["response_ids"] for sample in self.samples}

    def leave_one_out(self, values: Floats) -> Floats:
        """The mean over samples without each utterance in turn: `[samples, ...]` -> `[utterances, ...]`, float64."""
        counts = leave_one_out(np.ones(len(values)), self.clusters)
        # With one utterance, no samples are left.
        with np.errstate(invalid="ignore", divide="ignore"):
            return leave_one_out(values, self.clusters) / counts.reshape(-1, *[1] * (values.ndim - 1))

    def mean(self, values: Floats) -> Curve:
        """The mean over samples with its interval: `[samples, ...]` -> `[...]`."""
        return curve(values.mean(0, dtype=np.float64), self.leave_one_out(values))

    def share(self, values: Floats) -> Curve:
        """The mean of zeros and ones over samples with its interval: `[samples, ...]` -> `[...]`."""
        share = values.mean(0, dtype=np.float64)
        return Curve(share, *share_interval(share, self.leave_one_out(values), len(values)))

    def share_difference(self, values: Floats) -> Curve:
        """The mean over samples of differences of zeros and ones with its interval: `[samples, ...]` -> `[...]`."""
        change = values.mean(0, dtype=np.float64)
        squares = np.square(values).mean(0, dtype=np.float64)
        return Curve(change, *share_difference_interval(change, self.leave_one_out(values), squares, len(values)))

    def influence_note(self, label: str, values: Floats) -> str | None:
        """A sentence that names the samples of an outlying utterance that alone decides a mean, or None.

        Args:
            label: name of the mean in the sentence, such as `D_i`.
            values: `[samples]`.
        """
        found = most_influential(values.astype(np.float64), self.clusters)
        ids = [sample for sample, cluster in zip(self.ids, self.clusters, strict=True) if cluster == found.cluster]
        return influence_sentence(label, found, ids)

    def positions(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Indices of the samples with these ids."""
        position = {sample: i for i, sample in enumerate(self.ids)}
        return np.array([position[i] for i in ids], dtype=np.int64)

    def paired_with(self, other: Self) -> tuple[Self, Self]:
        """Both results on their common samples."""
        theirs = set(other.ids)
        shared = [sample for sample in self.ids if sample in theirs]
        return self.subset(shared), replace(other.subset(shared), seed=self.seed)

    def subset(self, ids: list[str]) -> Self:
        """The result of these samples alone, in this order."""
        keep = self.positions(ids)
        return replace(
            self,
            clusters=np.unique(self.clusters[keep], return_inverse=True)[1],
            samples=[self.samples[i] for i in keep],
            **{name: getattr(self, name)[keep] for name in self.BY_SAMPLE},
        )

    def summary(self) -> dict[str, Any]:
        """The measurement's own part of `result.json`."""
        return {name: self.mean(getattr(self, name)).to_dict() for name in self.BY_SAMPLE}

    def differences(self, other: Self) -> dict[str, Any]:
        """`other` minus this one with 95 % intervals over paired utterances; both hold the same samples in order."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in self.BY_SAMPLE}
        return {
            f"{name}_difference": self.mean(theirs - own).to_dict() if own.shape == theirs.shape else None
            for name, (own, theirs) in pairs.items()
        }

    def drift_from(self, reference: Self) -> dict[str, Floats]:
        """This result minus `reference` (the same samples in float32), by name and unit, `[samples, ...]`.

        By default the difference of each value in `BY_SAMPLE` that is not a count.
        """
        pairs = {name: (getattr(self, name), getattr(reference, name)) for name in self.BY_SAMPLE}
        return {
            name.replace("_", " "): own - other
            for name, (own, other) in pairs.items()
            if np.issubdtype(own.dtype, np.floating)
        }

    def precision_drift(self) -> Drift:
        """Differences between half precision and float32 in the verified samples of this result; empty if there are
        none."""
        check, known = self.precision, set(self.ids)
        if check is None or not (ids := [sample for sample in check.ids if sample in known]):
            return {}
        own, kept = self.subset(ids), [check.ids.index(sample) for sample in ids]
        arrays: dict[str, Any] = {name: check.arrays[name][kept] for name in self.BY_SAMPLE if name in check.arrays}
        changes = own.drift_from(replace(own, **arrays))
        return {name: largest_change(change) for name, change in changes.items()}

    def precision_note(self) -> str | None:
        """One line on the numerical precision: half precision or quantised weights; None for neither."""
        return describe(self.checkpoint.dtype, self.checkpoint.quantised, self.precision, self.precision_drift())

    def _precision(self) -> dict[str, Any] | None:
        return summarise(self.checkpoint.dtype, self.precision, self.precision_drift())

    def warning(self, other: Self, controls: Sequence[str] = ()) -> str | None:
        """Why the two results should not be compared directly, or None.

        Args:
            other: a result of the same measurement on the same samples in the same order.
            controls: names of results that may be compared with instead.
        """
        return None

    def find_controls(self, results: Sequence[MeasurementResult]) -> Mapping[str, MeasurementResult]:
        """The length-matched controls of this result among `results`, by the name of their text LLM."""
        return {}

    def to_frame(self) -> pd.DataFrame:
        """A row for each layer (one row if there are no layers): the mean of each value with its interval."""
        columns: dict[str, Floats] = {}
        for name in self.BY_SAMPLE:
            found = self.mean(getattr(self, name))
            ends = {"": found.mean, "_ci_low": found.ci_low, "_ci_high": found.ci_high}
            if np.ndim(found.mean) < 2:  # other shapes, for example by head, are in result.json
                columns |= {f"{name}{end}": np.asarray(values) for end, values in ends.items()}
        rows = max((values.size for values in columns.values()), default=1)
        # A number without layers is repeated in each row.
        table = {name: np.resize(values, rows) if values.ndim == 0 else values for name, values in columns.items()}
        return pd.DataFrame({"checkpoint": [self.name] * rows, "layer": np.arange(rows), **table})

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw the result on axes (new ones if None)."""
        draw = resolve_name(self.PLOT or "lsm_probe.runner.defaults:plot_values")
        drawn: Axes = draw([self], ax=ax, **style)
        return drawn

    @classmethod
    def schema(cls) -> str:
        """The schema name in `result.json`."""
        return f"lsm-probe/{cls.NAME}/{SCHEMA_VERSION}"

    def to_dict(self) -> dict[str, Any]:
        """The content of `result.json`."""
        return {
            "schema": self.schema(),
            "checkpoint": self.checkpoint.to_dict(),
            "data": self.data.to_dict(),
            "conventions": self.conventions.to_dict(),
            "versions": self.versions,
            "seed": self.seed,
            "interval": METHOD,
            "n_samples": len(self.samples),
            "excluded": self.excluded,
            **({"thinking": thinking} if (thinking := thinking_summary(self.samples)) else {}),
            **({"precision": precision} if (precision := self._precision()) else {}),
            **self.summary(),
        }

    def save(self, folder: str | Path) -> Path:
        """Writes `result.json`, `arrays.npz` and `samples.jsonl`; each appears whole or not at all."""
        folder = Path(folder)
        # A folder with a result.json must be complete, so it is removed first and written last.
        (folder / "result.json").unlink(missing_ok=True)
        with replacing(folder / "arrays.npz") as path:
            verified = {} if self.precision is None else self.precision.to_arrays(self.BY_SAMPLE)
            np.savez_compressed(path, allow_pickle=False, **self._arrays(), **verified)
        with replacing(folder / "samples.jsonl") as path:
            lines = [json.dumps(sample, ensure_ascii=False) for sample in self.samples]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(folder / "result.json", self.to_dict())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a folder that [`save`] wrote, in this or an earlier version.

        Raises:
            InputError: the folder holds no result of this measurement, or one with an unknown schema.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            name, number = read_schema(summary["schema"])
            if name != cls.NAME:
                raise InputError(f"result.json has schema {summary['schema']!r}, not {cls.schema()!r}")
            # Not splitlines(), which also cuts at characters that JSON strings may hold.
            lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
            with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            precision = PrecisionCheck.from_stored(summary.get("precision"), arrays)
            return cls(
                samples=[json.loads(line) for line in lines],
                checkpoint=CheckpointIdentity.from_dict(upgrade_identity(summary["checkpoint"], number)),
                data=DataIdentity.from_dict(summary["data"]),
                precision=precision,
                **{key: summary[key] for key in ("excluded", "seed", "versions")},
                **cls._fields(arrays, summary),
            )
        except (InputError, OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{folder} holds no readable result of {cls.NAME}: {reason}") from error

    def _arrays(self) -> dict[str, Any]:
        """The content of `arrays.npz`."""
        return {"clusters": self.clusters, **{name: getattr(self, name) for name in self.BY_SAMPLE}}

    @classmethod
    def _fields(cls, arrays: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the class, from the stored arrays and the content of `result.json`.

        Fields that the class adds come from the array of the same name, or else from the entry in the summary.
        """
        added = {field.name for field in fields(cls)} - {field.name for field in fields(MeasurementResult)}
        stored = {name: summary[name] for name in added if name in summary}
        conventions = get_type_hints(cls)["conventions"]
        chosen = (Choices if conventions is Any else conventions)(**summary["conventions"])
        return {**stored, **arrays, "conventions": chosen}


def thinking_summary(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How many responses begin with thinking, how many of these do not reach an answer, and the mean number of tokens
    of both parts over the responses with thinking; None if no response has thinking."""
    thinking = [sample for sample in samples if "thinking_tokens" in sample]
    if not thinking:
        return None
    tokens = np.array([[s["thinking_tokens"], len(s["response_ids"]) - s["thinking_tokens"]] for s in thinking])
    return {
        "responses": len(thinking),
        "unfinished": sum(sample["answer"] is None for sample in thinking),
        "thinking_tokens": rounded(tokens[:, 0].mean()),
        "answer_tokens": rounded(tokens[:, 1].mean()),
    }


def layer_groups(layers: int) -> list[NDArray[np.int64]]:
    """Numbers of the layers in each of the [`GROUPS`]; fewer groups if there are fewer layers."""
    return [group for group in np.array_split(np.arange(layers), GROUPS) if len(group)]


def curve(point: Floats, left_out: Floats) -> Curve:
    """A statistic with its interval; `left_out` is the statistic without each utterance, `[utterances, ...]`."""
    return Curve(point, *interval(point, left_out))


def influence_sentence(label: str, influence: Influence, ids: Sequence[str], digits: int = 2) -> str | None:
    """A sentence that a number is decided by a single outlying utterance, or None if it is not.

    Args:
        label: name of the number in the sentence.
        influence: of the utterance.
        ids: of the utterance's samples.
        digits: number of decimals.
    """
    if not influence.carries:
        return None
    named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    who = f"sample {named} alone moves" if len(ids) == 1 else f"samples {named} (one utterance) alone move"
    return f"{who} {label} from {influence.mean_without:.{digits}f} to {influence.mean:.{digits}f}"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON that is easy to diff: indented, with lists of numbers on one line."""
    with replacing(path) as temporary:
        temporary.write_text(_dumps(content) + "\n", encoding="utf-8")


def _dumps(content: Any, indent: str = "") -> str:
    if isinstance(content, dict) and content:
        inner = indent + "  "
        items = [f"{inner}{json.dumps(str(k))}: {_dumps(v, inner)}" for k, v in content.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def rounded(values: Floats) -> Any:
    """Six decimals: well below the float32 noise across machines, and easy to read. NaN (undefined) becomes None."""
    if np.ndim(values):
        return [rounded(value) for value in values]
    return None if np.isnan(values) else round(float(values), 6)
