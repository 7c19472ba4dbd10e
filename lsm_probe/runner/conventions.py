"""Conventions: the named choices behind a number, stored with every result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lsm_probe.errors import InputError


@dataclass(frozen=True)
class Choices:
    """Named choices: fields of type `Literal[...]` accept only the listed values.

    Raises:
        InputError: a value is not listed.
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
