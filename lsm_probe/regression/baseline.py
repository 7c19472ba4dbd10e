"""A stored eta curve: one `result.json` read strictly, alone, and without numpy, so that a check answers at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lsm_probe.data.manifest import explain
from lsm_probe.errors import InputError
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.runner.dtypes import dtype_warning

GENERATED = "the responses are generated, and may change with the model: baselines should use --response reference"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Checkpoint(_Part):
    name: str
    source: str
    template: str
    dtype: str
    max_new_tokens: int | None = None
    responses: str | None = None
    response_part: str | None = None
    control: dict[str, Any] | str | None = None
    prompt_sha256: str | None = None
    date: str | None = None


class _Data(_Part):
    sha256: str
    n_samples: int


class _Eta(_Part):
    mean: list[Share]
    ci_low: list[Share | None]
    ci_high: list[Share | None]


class _Tokens(_Part):
    mean: float


class _Segment(_Part):
    tokens: _Tokens


class _SelfCheck(_Part):
    backend: str = "native"


class Baseline(_Part):
    """What a check reads of a result of the attention probe; everything else in the file is left alone.

    Attributes:
        schema_: that of the attention probe, or an earlier version of it.
        layers: numbers of the LLM's decoder layers.
        eta: mean and interval by layer, each `[layers]`, in 0 ... 1, six decimals.
        n_samples: samples that were measured; `excluded` names the others, by reason.
    """

    schema_: Literal["lsm-probe/attention/1", "lsm-probe/attention/2"] = Field(alias="schema")
    checkpoint: _Checkpoint
    data: _Data
    conventions: Conventions
    versions: dict[str, str]
    n_samples: Annotated[int, Field(gt=0)]
    excluded: dict[str, list[str]]
    self_check: _SelfCheck
    layers: Annotated[list[int], Field(min_length=1)]
    eta: _Eta
    segments: dict[str, _Segment]

    @property
    def is_generated(self) -> bool:
        """Whether the model's own answers, of this very run, were measured."""
        return self.conventions.response == "generated" and self.checkpoint.responses is None

    @model_validator(mode="after")
    def _one_value_a_layer(self) -> Self:
        for name, values in self.eta:
            if len(values) != len(self.layers):
                raise ValueError(f"eta.{name} has {len(values)} values for {len(self.layers)} layers")
        return self


def read_baseline(path: str | Path) -> Baseline:
    """Reads a `result.json`: the file, or the folder that holds it. A pipe will do.

    Raises:
        InputError: there is none, it is of another probe or schema, or a value is missing, of another type or not
            finite.
    """
    file = result_file(path)
    try:
        return Baseline.model_validate_json(file.read_bytes())
    except ValidationError as error:
        reason = " ".join(explain(error).split())
        raise InputError(
            f"{file} is not a usable result of the attention probe: {reason} (write it with `lsm-probe attention`)"
        ) from None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): {_instead(Path(path))}") from None


def result_file(path: str | Path, name: str = "result.json") -> Path:
    """The file that a path means: itself, or the one of this name in a folder, be it there or not."""
    path = Path(path)
    # Path's own `is_dir` and `exists` raise where a name is too long.
    is_folder = os.path.isdir(path) or (not os.path.exists(path) and path.suffix != ".json")  # noqa: PTH110, PTH112
    return path / name if is_folder else path


def require_comparable(baseline: Baseline, current: Baseline, *, paired: bool = False) -> None:
    """Refuses two curves that differ in more than the model.

    Another checkpoint, dtype or version is what a check is for. Samples left out must be the same, or the curves are
    means over different samples; a paired check takes those that both have.

    Raises:
        InputError: data, conventions, template, what was measured, or the number of layers differ.
    """
    for before, now in zip(_terms(baseline), _terms(current), strict=True):
        if before.value == now.value or (paired and before.what == LEFT_OUT):
            continue
        if before.what in OPTIONAL_TERMS and None in (before.value, now.value):
            continue
        raise InputError(
            f"{before.what} differs: {_short(before.value)} in the baseline, {_short(now.value)} in the current "
            f"result; {before.remedy}, or accept another baseline with --update"
        )


def notes(baseline: Baseline, current: Baseline, *, paired: bool = False) -> Iterator[str]:
    """What does not forbid the comparison, but alone may change a curve; one line each."""
    if current.is_generated:
        yield GENERATED
    if current.checkpoint.responses is not None and not paired:
        yield "the responses were given, and result.json does not tell which: --paired compares them too"
    source = [result.segments["source"].tokens.mean for result in (baseline, current) if "source" in result.segments]
    if len(set(source)) > 1:
        yield f"source lengths differ ({source[0]:g}, {source[1]:g} tokens on average), which by itself changes eta"
    dtypes = {"baseline": baseline.checkpoint.dtype, "current result": current.checkpoint.dtype}
    if warning := dtype_warning(dtypes):
        yield warning
    if baseline.checkpoint.prompt_sha256 is None and current.checkpoint.date is not None:
        yield (
            f"the current prompts contain the date {current.checkpoint.date}; the baseline was made by an older "
            "version, which did not store its date"
        )
    if baseline.self_check.backend != current.self_check.backend:
        yield f"backends differ ({baseline.self_check.backend}, {current.self_check.backend})"
    names = sorted(baseline.versions.keys() | current.versions.keys())
    versions = [(name, baseline.versions.get(name), current.versions.get(name)) for name in names]
    if changed := [f"{name} {before} -> {now}" for name, before, now in versions if before != now]:
        yield f"versions differ: {', '.join(changed)}"


def require_two_files(current: str | Path, baseline: str | Path) -> None:
    """A check of a file against itself would hold for ever.

    Raises:
        InputError: both are one file.
    """
    first, second = result_file(current), result_file(baseline)
    if first.exists() and second.exists() and first.samefile(second):
        raise InputError(f"baseline and current are the same file, {second}: give two different results")


class _Term(NamedTuple):
    what: str
    value: Any
    remedy: str


LEFT_OUT = "which samples were left out"
OPTIONAL_TERMS = ("the date in the prompt", "the text of the prompt template (sha256)")
"""Terms that results of older versions do not store."""


def _terms(result: Baseline) -> list[_Term]:
    """What two results must agree on, by name, and how to make them agree."""
    checkpoint, conventions = result.checkpoint, result.conventions
    longest = checkpoint.max_new_tokens if result.is_generated else None
    origin = "generated by the model" if result.is_generated else "the samples' targets"
    if checkpoint.responses is not None:
        origin = "given with --responses"
    left_out = sorted(sample for samples in result.excluded.values() for sample in samples)
    return [
        _Term("the data (sha256)", result.data.sha256[:12], "probe the same samples (--data, --limit)"),
        _Term("the number of samples", result.data.n_samples, "probe the same samples (--data, --limit)"),
        *(
            _Term(f"convention {name!r}", value, f"probe both with the same --{name}")
            for name, value in conventions.to_dict().items()
        ),
        _Term("where responses come from", origin, "probe both with --responses or both without"),
        _Term("the part of responses", checkpoint.response_part, "probe both with the same --response-part"),
        _Term("the longest generated response", longest, "probe both with the same --max-new-tokens"),
        _Term("the kind of source", checkpoint.source, "probe a model of the same kind"),
        _Term(
            "the kind of control",
            "no control" if checkpoint.control is None else "a length-matched control",
            "probe a model of the same kind",
        ),
        _Term("the prompt template", checkpoint.template, "probe both with the same --template"),
        _Term(OPTIONAL_TERMS[0], checkpoint.date, "probe both with the same --date"),
        _Term(OPTIONAL_TERMS[1], checkpoint.prompt_sha256, "take the chat template of the baseline's checkpoint"),
        _Term("the number of layers", len(result.layers), "probe a model of the same depth"),
        _Term("which layers were measured", result.layers, "probe a model of the same depth"),
        _Term(LEFT_OUT, left_out, "correct these samples, or compare those that both have with --paired"),
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _instead(path: Path) -> str:
    """What to name instead of a path that holds no result."""
    below = sorted(file.parent.name for file in path.glob("[!.]*/result.json")) if path.is_dir() else []
    if below:
        return f"name one of the folders below: {', '.join(below)}"
    return "name a result.json or the folder that holds one (a baseline that is not there yet is made with --update)"
