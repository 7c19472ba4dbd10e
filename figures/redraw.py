"""Draws the figures of earlier studies again from the numbers beside them: python figures/redraw.py

Their results are not stored, only the tables that were written with the pictures. The classes below read such tables in
the place of results, so that the package draws them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lsm_probe.evaluation.metrics import Score
from lsm_probe.evaluation.plot import evaluation_figure
from lsm_probe.evaluation.task import Task, read_task
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.plot import eta_figure
from lsm_probe.probes.importance.plot import importance_figure
from lsm_probe.probes.knockout.plot import knockout_figure
from lsm_probe.probes.knockout.result import KnockoutConventions
from lsm_probe.runner.head_maps import HeadMap, Scale, head_figure
from lsm_probe.runner.identity import CheckpointIdentity, Control
from lsm_probe.runner.result import Curve, Floats
from lsm_probe.runner.style import with_own_settings
from lsm_probe.training.plot import history_figure

HERE = Path(__file__).parent
RANKING = HERE.parent / "analyses" / "beyond_attention"
sys.path.insert(0, str(RANKING))
import rank  # noqa: E402

ARMS = {"runs/sp/1-listen/model": "vanilla", "runs/sp/model": "self_powered"}
"""Names in the tables -> arms."""


@dataclass(frozen=True)
class Stored:
    """The rows of one checkpoint."""

    name: str
    table: pd.DataFrame

    @classmethod
    def read(cls, path: str, **settings: Any) -> list[Self]:
        table = pd.read_csv(HERE / path).replace({"checkpoint": ARMS})
        return [cls(name, rows, **settings) for name, rows in table.groupby("checkpoint", sort=False)]

    @property
    def checkpoint(self) -> CheckpointIdentity:
        llm, _, speech = self.name.partition(" at length of ")
        return CheckpointIdentity(
            name=self.name,
            source="text" if llm == rank.LLM else "speech",
            template="",
            dtype="",
            control=Control(llm, (speech,)) if speech else None,
        )

    @property
    def is_control(self) -> bool:
        return self.checkpoint.control is not None

    @property
    def n_layers(self) -> int:
        return int(self.table["layer"].max()) + 1

    def by_layer(self, column: str, index: str) -> Floats:
        """`[layers, values of index]`, in the order of the table."""
        wanted = self.table[index].unique()
        return self.table.pivot(index="layer", columns=index, values=column)[wanted].to_numpy()


@dataclass(frozen=True)
class Eta(Stored):
    measured_on: str
    segment: str = "mean"

    def with_conventions(self, segment: str) -> Self:
        return replace(self, segment=segment)

    def eta(self) -> Curve:
        rows = self.table[self.table["segment"] == self.segment]
        return Curve(*(rows[column].to_numpy() for column in ("eta", "ci_low", "ci_high")))


class Knockout(Stored):
    conventions = KnockoutConventions()

    def falls(self, segment: Segment) -> Curve:
        key = f"fall_{segment.name.lower()}"
        return Curve(*(self.table[column].to_numpy() for column in (key, f"{key}_low", f"{key}_high")))


class Importance(Stored):
    @property
    def modules(self) -> list[str]:
        return list(self.table["module"].unique())

    def by_module(self, reduce: str) -> Floats:
        return self.by_layer(reduce, "module")

    def share_by_layer(self) -> Curve:
        """Without intervals: the table has those of single matrices."""
        layers = self.by_module("sum").sum(1)
        return Curve(layers / layers.sum(), *np.full((2, len(layers)), np.nan))


class Evaluation(Stored):
    @property
    def tasks(self) -> list[Task]:
        return [read_task(name) for name in self.table["task"].unique()]

    def scores(self) -> dict[str, dict[str, Score]]:
        found: dict[str, dict[str, Score]] = {}
        for row in self.table.to_dict("records"):
            score = Score(row["metric"], row["value"], row["ci_low"], row["ci_high"], row["n"], {"words": None})
            found.setdefault(row["task"], {})[row["metric"]] = score
        return found


def importance(path: str) -> Figure:
    results = Importance.read(path)
    matrices = [replace(each, table=each.table[each.table["module"].str.endswith("_proj")]) for each in results]
    return importance_figure(matrices)


@with_own_settings
def heads(first: Stored, second: Stored) -> Figure:
    """As the package draws them, but without frames: the tables have no p-values."""
    layers = range(first.n_layers)
    etas = [each.by_layer("eta", "head") for each in (first, second)]
    shares = [each.by_layer("share", "head") for each in (first, second)]
    maps = [
        HeadMap(first.name, etas[0], layers, shares[0]),
        HeadMap(second.name, etas[1], layers, shares[1]),
        HeadMap(f"{second.name} minus {first.name}", etas[1] - etas[0], layers),
    ]
    scale = Scale("η of the head (0.5 = balanced)", 0.5, 0.5)
    xlabel = "layer (area of η's squares: the head's share of its layer)"
    return head_figure([[shown] for shown in maps], [scale, scale, Scale("difference of η", 0, 1)], xlabel)


def figures() -> dict[str, Figure]:
    found = {
        "beyond_attention/eta": eta_figure(Eta.read("beyond_attention/eta.csv", measured_on="24 samples")),
        "beyond_attention/knockout": knockout_figure(Knockout.read("beyond_attention/knockout.csv")),
        "beyond_attention/ranking": rank.draw(pd.read_csv(RANKING / "ranking.csv", index_col="checkpoint")),
        "miniature_training/eta": eta_figure(Eta.read("miniature_training/eta.csv", measured_on="12 samples")),
        "heads/eta_heads": heads(*Stored.read("heads/eta_heads.csv")),
        "text_ability/importance": importance("text_ability/importance.csv"),
        "evaluation/evaluation": evaluation_figure(Evaluation.read("evaluation/metrics.csv")),
    }
    for name in ("vanilla_asr", "self_powered", "repaired", "four_tasks"):
        path = f"miniature_training/{name}"
        found[path] = history_figure(pd.read_csv(HERE / f"{path}.csv", index_col="step"))
    return found


def main() -> None:
    for path, figure in figures().items():
        figure.savefig(HERE / f"{path}.png", dpi=150)


if __name__ == "__main__":
    main()
