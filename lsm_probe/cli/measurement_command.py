"""The command of a measurement, its options made from what the measurement and all measurements declare."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, get_type_hints

from lsm_probe.cli import options as opt
from lsm_probe.errors import InputError
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.options import MeasureKeywords, ResponseOptions, RunOptions


def measurement_command(measurement: Measurement) -> Callable[..., None]:
    """A function that typer takes as a command: checkpoints and samples in, a folder of results out.

    Raises:
        InputError: an option of the measurement has the name of one that all commands have.
    """
    own, shared = measurement.own_parameters(), _shared(measurement)
    taken = {p.name for p in own} & {"responses", *_CHECKPOINTS, *_RUNNING}
    if taken:
        raise InputError(f"every command has an option {min(taken)!r}: give that of {measurement.name!r} another name")

    def command(
        ckpt: list[str],
        data: str,
        out: Path | None,
        base: str | None,
        template: str | None,
        date: str | None,
        encoder: str | None,
        llm: str | None,
        beats: str | None,
        device: str,
        dtype: str,
        limit: int | None,
        resume: bool,
        json: bool,
        responses: Path | None = None,
        **values: Any,
    ) -> None:
        from lsm_probe.cli.run import read_samples, run_and_show
        from lsm_probe.runner.named_checkpoints import named_checkpoints

        asked = measurement.parse_options({name: values.pop(name) for name in [p.name for p in own]})
        loading = opt.loading_options(
            device=device, dtype=dtype, template=template, date=date, encoder=encoder, llm=llm, beats=beats
        )
        run_and_show(
            measurement,
            named_checkpoints(ckpt, loading, base=base, source=asked.source),
            lambda: read_samples(data, limit, values["on_error"]),
            out,
            options={**values, **asked.measure},
            responses=responses,
            resume=resume,
            as_json=json,
            finish=asked.finish,
        )

    parameters = [
        *(_parameter(name, *option) for name, option in _CHECKPOINTS.items()),
        *(shared[name] for name in shared if name in ResponseOptions.__annotations__),
        *([] if measurement.response is None else [_parameter("responses", opt.Responses, None)]),
        *(p.replace(kind=Parameter.KEYWORD_ONLY) for p in own),
        *(shared[name] for name in shared if name in RunOptions.__annotations__),
        *(_parameter(name, *option) for name, option in _RUNNING.items()),
    ]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = measurement.help
    return command


_CHECKPOINTS = {
    "ckpt": (opt.Ckpt, Parameter.empty),
    "data": (opt.Data, "builtin:probe"),
    "out": (opt.Out, None),
    "base": (opt.AdapterBase, None),
    "template": (opt.Template, None),
    "date": (opt.Date, None),
    "encoder": (opt.Encoder, None),
    "llm": (opt.Llm, None),
    "beats": (opt.Beats, None),
}
_RUNNING = {
    "device": (opt.Device, "auto"),
    "dtype": (opt.Dtype, "auto"),
    "limit": (opt.Limit, None),
    "resume": (opt.Resume, False),
    "json": (opt.Json, False),
}
"""Options that every command of a measurement has, with their defaults."""


def _shared(measurement: Measurement) -> dict[str, Parameter]:
    """The options that all measurements share, by name."""
    found = {}
    for options in (RunOptions,) if measurement.response is None else (ResponseOptions, RunOptions):
        hints = get_type_hints(options, include_extras=True)
        for name in MeasureKeywords.__annotations__:
            if hasattr(hints.get(name), "__metadata__"):
                default = measurement.response if name == "response" else getattr(options, name)
                found[name] = _parameter(name, hints[name], default)
    return found


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
