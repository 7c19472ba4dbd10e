"""Conventions: the choices behind a number, by name, stored with every result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lsm_probe.errors import InputError


@dataclass(frozen=True)
class Choices:
    """Named choices: fields of type `Literal[...]` take the values named there alone.

    Raises:
        InputError: a value is none of those named.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            allowed = get_args(hint)
            if get_origin(hint) is Literal and value not in allowed:
                raise InputError(f"{field.name} {value!r} is unknown; choose one of: {', '.join(allowed)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Conventions(Choices):
    """How norms become an eta. The defaults come first. All but `response` are made when a result is read.

    Attributes:
        heads: `sum_then_norm` takes the norm of the sum over heads (Kobayashi 2020, equation 3);
            `mean_of_norms` the mean over heads of each head's norm.
        segment: `mean` over a segment's tokens (arXiv 2410.03798, equation 2), or their `sum`.
        aggregate: `mean_of_ratios` takes eta of each sample and then the mean; `ratio_of_means` the other way round.
        span: what counts as instruction: `instruction` alone, or `instruction+template` (template tokens outside the
            system text, position 0 left out).
        response: what the generating rows predict: the model's own `generated` answer or the `reference`.
    """

    heads: Literal["sum_then_norm", "mean_of_norms"] = "sum_then_norm"
    segment: Literal["mean", "sum"] = "mean"
    aggregate: Literal["mean_of_ratios", "ratio_of_means"] = "mean_of_ratios"
    span: Literal["instruction", "instruction+template"] = "instruction"
    response: Literal["generated", "reference"] = "generated"
