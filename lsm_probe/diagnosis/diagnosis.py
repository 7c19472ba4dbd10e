"""A diagnosis: the verdicts about several checkpoints on the same samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from lsm_probe.data.identity import DataIdentity
from lsm_probe.diagnosis import FILE, SCHEMA
from lsm_probe.diagnosis.verdict import Verdict
from lsm_probe.errors import InputError, one_line
from lsm_probe.runner.result import package_versions, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The verdicts about checkpoints that were measured on the same samples.

    Attributes:
        verdicts: one for each checkpoint, in the order given.
        base: name of the base LLM, or None.
        data: identity of the samples.
        settings: how it was measured: utterances of each measurement, maximum response length, batch size and seed.
        names: short name of a checkpoint -> the name or path that the user gave.
        left_out: name of a measurement -> why the data do not allow it.
        precision: one line for each checkpoint in half precision or with quantised weights, on its numerical precision,
            and a warning if checkpoints have different dtypes.
        dtypes: short name of a measured checkpoint -> the dtype that it was computed in.
        versions: of the packages that the numbers depend on.
    """

    verdicts: Sequence[Verdict]
    base: str | None
    data: DataIdentity
    settings: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    precision: Sequence[str] = field(default_factory=list)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=package_versions)

    def __getitem__(self, checkpoint: str) -> Verdict:
        """The verdict about a checkpoint, by its short name or by the name that the user gave.

        Raises:
            KeyError: the checkpoint is not in this diagnosis.
        """
        by_name = {self.names.get(each.checkpoint, each.checkpoint): each for each in self.verdicts}
        by_name |= {each.checkpoint: each for each in self.verdicts}
        return by_name[checkpoint]

    def to_frame(self) -> pd.DataFrame:
        """A row for each checkpoint and number: verdict, value, interval, unit, n and what it is compared with."""
        return pd.DataFrame(
            [
                {"checkpoint": each.checkpoint, "verdict": each.verdict, **vars(evidence)}
                for each in self.verdicts
                for evidence in each.evidence
            ]
        )

    def __repr__(self) -> str:
        verdicts = "; ".join(f"{each.checkpoint}: {each.verdict}" for each in self.verdicts)
        return one_line(f"Diagnosis({self.data.name}, {self.data.n_samples} samples): {verdicts}")

    def _repr_html_(self) -> str:
        """The notebook view: a small table of the verdicts, and a small figure of their numbers."""
        html: str = resolve_name("lsm_probe.diagnosis.verdict_html:diagnosis_html")(self)
        return html

    @property
    def _short_base(self) -> str | None:
        """The short name of the base LLM, as the verdicts use it."""
        return next((short for short, full in self.names.items() if full == self.base), self.base)

    def plot(self) -> Figure:
        """Draws the decisive numbers of each checkpoint, with their intervals."""
        figure: Figure = resolve_name("lsm_probe.diagnosis.plot:verdict_figure")(self.verdicts, self._short_base)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """The content of `diagnosis.json`."""
        return {
            "schema": SCHEMA,
            "base": self.base,
            "data": self.data.to_dict(),
            "settings": dict(self.settings),
            "names": dict(self.names),
            "left_out": dict(self.left_out),
            **({"precision": list(self.precision)} if self.precision else {}),
            "dtypes": dict(self.dtypes),
            "versions": dict(self.versions),
            "checkpoints": [each.to_dict() for each in self.verdicts],
        }

    def save(self, folder: str | Path) -> Path:
        """Writes `diagnosis.json`; the file appears only when it is complete."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a `diagnosis.json`, given its path or its folder.

        Raises:
            InputError: the file does not exist or cannot be read.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["schema"] != SCHEMA:
                raise InputError(f"schema {stored['schema']!r}, not {SCHEMA!r}")
            return cls(
                verdicts=[Verdict.from_dict(each) for each in stored["checkpoints"]],
                data=DataIdentity.from_dict(stored["data"]),
                precision=stored.get("precision", []),
                dtypes=stored.get("dtypes", {}),
                **{key: stored[key] for key in ("base", "settings", "names", "left_out", "versions")},
            )
        except (InputError, OSError, ValueError, LookupError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{file} is not a readable diagnosis: {reason} (write it with lsm-probe diagnose)"
            ) from error
