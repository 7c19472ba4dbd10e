"""Definition of a measurement: one object that the command line, the report and `lsm_probe` use.

A probe is a measurement that `lsm_probe.probes.registry` lists. Fields that hold code may be objects, or names such as
`"package.module:function"`, which are imported when first needed, so that `lsm-probe --help` does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from lsm_probe.runner.options import MeasureKeywords

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsm_probe.data.sample import Sample
    from lsm_probe.runner.page import Section
    from lsm_probe.runner.tables import Table

Named = str | Callable[..., Any]
"""A function or class, or its name."""


@dataclass(frozen=True)
class ControlRun:
    """A further measurement that comparisons need.

    Attributes:
        checkpoint: name of the checkpoint, as `load` takes it.
        name: name of its result.
        samples: the samples it is measured on.
        options: keyword arguments of the measurement that differ from the run's.
    """

    checkpoint: str
    name: str
    samples: Sequence[Sample]
    options: dict[str, Any]


@dataclass(frozen=True)
class CommandOptions:
    """The values of a command's options.

    Attributes:
        measure: keyword arguments of the measurement.
        source: key that all samples must have, if the measurement gives every checkpoint this source.
        finish: called with the results after they are stored.
    """

    measure: dict[str, Any]
    source: Literal["speech", "text"] | None = None
    finish: Callable[[Sequence[Any]], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measurement of checkpoints on samples.

    Only `name`, `help`, `measure` and `result` are required. By default, results are shown by their `to_frame`, `plot`
    and `summary`.

    Attributes:
        name: of the command and of the function in `lsm_probe`.
        title: of its section in a report; by default the name.
        help: what it measures, for `--help`; the first line has at most 80 characters and stands alone.
        measure: `measure(checkpoint, samples, **options) -> result`.
        result: the class of its results, a [`MeasurementResult`].
        options: a function that returns [`CommandOptions`]. Its parameters, annotated with `typer.Option`, become
            options of the command; by default the keyword-only parameters of `measure`.
        response: the default of `--response` for a measurement of responses; None for a measurement of prompts alone.
        table: `table(results) -> Table`, what the command prints.
        note: `note(result) -> str`, one line about each result.
        figures: `figures(results) -> Figure | list[Figure]`, for reports and notebooks; None if there are none.
        save_figures: `save_figures(results, folder)`, writes the files named in `pictures`.
        pictures: names of those files.
        section: `section(results, everything) -> Section | list[Section]`, its part of the report; `everything` holds
            all results of the report.
        controls: `controls(results, samples)`, yields a [`ControlRun`] for each further measurement that comparisons
            need.
    """

    name: str
    help: str
    measure: Named
    result: Named
    title: str = ""
    options: Named | None = None
    response: Literal["generated", "reference"] | None = None
    table: Named = "lsm_probe.runner.defaults:frame_table"
    note: Named | None = None
    figures: Named | None = "lsm_probe.runner.defaults:results_figure"
    save_figures: Named | None = None
    pictures: Sequence[str] = ()
    section: Named = "lsm_probe.runner.defaults:default_section"
    controls: Named | None = None

    @classmethod
    def in_package(cls, package: str, **fields: Any) -> Self:
        """A measurement with its code in a package, under names that follow from the package's name.

        For example, the package `importance` holds `measure.importance`, `result.ImportanceResult`,
        `plot.importance_figure`, `plot.save_importance`, `tables.importance_table`, `tables.importance_note` and
        `tables.importance_section`. They are imported when first needed.

        Args:
            package: its full name.
            fields: fields without such a name, or with another name.
        """
        name = package.rpartition(".")[2]
        by_convention = {
            "measure": f"{package}.measure:{name}",
            "result": f"{package}.result:{name.capitalize()}Result",
            "table": f"{package}.tables:{name}_table",
            "note": f"{package}.tables:{name}_note",
            "figures": f"{package}.plot:{name}_figure",
            "save_figures": f"{package}.plot:save_{name}",
            "section": f"{package}.tables:{name}_section",
        }
        return cls(name=name, **{"response": "generated", **by_convention, **fields})

    def get(self, field: str) -> Any:
        """The object of a field, imported if the field names it."""
        value = getattr(self, field)
        return resolve_name(value) if isinstance(value, str) else value

    def own_parameters(self) -> list[Parameter]:
        """The parameters that become options of the command, in addition to those that all measurements share."""
        function = self.get("options") or self.get("measure")
        kinds = (Parameter.KEYWORD_ONLY,) if self.options is None else (Parameter.POSITIONAL_OR_KEYWORD,)
        found = signature(function, eval_str=True).parameters.values()
        return [p for p in found if p.kind in kinds and p.name not in MeasureKeywords.__annotations__]

    def parse_options(self, values: dict[str, Any]) -> CommandOptions:
        """The options that the values of those parameters define."""
        parsed = CommandOptions(values) if self.options is None else self.get("options")(**values)
        if not isinstance(parsed, CommandOptions):
            raise TypeError(f"options of the measurement {self.name!r} must return CommandOptions, not {parsed!r}")
        return parsed

    def make_table(self, results: Sequence[Any]) -> Table:
        """The numbers of all results, as printed by the command."""
        return cast("Table", self.get("table")(results))

    def make_note(self, result: Any) -> str:
        """One line about a result, following a semicolon; may be empty."""
        return "" if self.note is None else f"; {self.get('note')(result)}"

    def make_figures(self, results: Sequence[Any]) -> list[Figure]:
        """The measurement's figures, each with all results."""
        return [] if self.figures is None else _as_list(self.get("figures")(results))

    def make_sections(self, results: Sequence[Any], everything: Any) -> list[Section]:
        """The measurement's part of a report."""
        return _as_list(self.get("section")(self, results, everything))

    def picture_names(self) -> Sequence[str]:
        """The files that [`save_pictures`] may write."""
        kinds = ("png", "svg", "csv") if self.figures else ("csv",)
        return self.pictures or [f"{self.name}.{kind}" for kind in kinds]

    def save_pictures(self, results: Sequence[Any], folder: Path) -> None:
        """Write the figures of all results, and the numbers behind them."""
        if self.save_figures is not None:
            self.get("save_figures")(results, folder)
            return
        from lsm_probe.runner.picture_files import save_figure, save_frames

        for i, figure in enumerate(self.make_figures(results), start=1):
            save_figure(figure, folder / (self.name if i == 1 else f"{self.name}_{i}"))
        save_frames(results, folder / f"{self.name}.csv")

    def make_controls(self, results: Sequence[Any], samples: Sequence[Any]) -> Iterable[Any]:
        """The further measurements that comparisons of these results need."""
        return () if self.controls is None else self.get("controls")(results, samples)


def _as_list(made: Any) -> list[Any]:
    return made if isinstance(made, list) else [made]
