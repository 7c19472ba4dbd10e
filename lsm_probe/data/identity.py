"""The identity of the data that a result was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lsm_probe.errors import InputError


@dataclass(frozen=True)
class DataIdentity:
    """What a result stores about its data."""

    name: str  # of the manifest, or of the tasks
    sha256: str  # hash of everything that goes into prompts and targets
    n_samples: int  # number of samples, including those left out
    instruction: str | None = None  # the one instruction that replaced those of the samples, if any
    parts: tuple[DataIdentity, ...] = ()  # if the data combines several sources

    def is_same_as(self, other: DataIdentity) -> bool:
        """Whether both have the same samples, whatever their names."""
        return (self.sha256, self.n_samples) == (other.sha256, other.n_samples)

    def to_dict(self) -> dict[str, Any]:
        stored = {name: value for name, value in vars(self).items() if value}
        return stored | ({"parts": [part.to_dict() for part in self.parts]} if self.parts else {})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read what [`to_dict`] wrote.

        Raises:
            InputError: a key is unknown or missing.
        """
        try:
            return cls(**{**stored, "parts": tuple(map(cls.from_dict, stored.get("parts", ())))})
        except TypeError as error:
            raise InputError(f"the identity of the data cannot be read: {error}") from error
