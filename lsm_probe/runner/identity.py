"""What a stored result records about its checkpoint, prompts and responses, in this and earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from lsm_probe.errors import InputError
from lsm_probe.models.identity import ModelIdentity

SCHEMA_VERSION = 2
"""Version 2 stores what a control and a cascade are made of; version 1 stored this only in the names."""


@dataclass(frozen=True)
class Control:
    """Marks a control: a text LLM measured again with its transcripts repeated or cut to given numbers of tokens.

    Attributes:
        control_of: name of the text LLM.
        source_length_of: names of the checkpoints whose source lengths were used; empty if the user gave lengths.
    """

    control_of: str
    source_length_of: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the control in tables and figures."""
        return " at length of ".join([self.control_of, *self.source_length_of[:1]])

    def rank_for(self, checkpoint: str) -> int:
        """2 for the first checkpoint it was made for, 1 for the other checkpoints with the same lengths, else 0."""
        return (checkpoint in self.source_length_of) + (checkpoint in self.source_length_of[:1])

    def to_dict(self) -> dict[str, Any]:
        return {"control_of": self.control_of, "source_length_of": list(self.source_length_of)}


@dataclass(frozen=True, kw_only=True)
class CheckpointIdentity:
    """What a result stores about its checkpoint and the responses it was measured on.

    Attributes:
        name: the user's name for the checkpoint; for a control, [`Control.name`].
        source: the content of the source slot in its prompts.
        template: name of the prompt template.
        dtype: of the weights, as torch names it.
        quantised: how weights are quantised, such as `Linear4bit, uint8`; None if none is quantised.
        max_new_tokens: maximum length of a generated response; None for a measurement of prompts alone.
        responses: `given` if token ids were given instead of generated.
        response_part: which part of the responses was measured, if not the whole response.
        control: set if this is a length-matched control.
        cascade_of: names of the recogniser and the text LLM, if the checkpoint is a cascade of both.
        model: kind, revision and hashes of the weights.
    """

    name: str
    source: Literal["speech", "text"]
    template: str
    dtype: str
    quantised: str | None = None
    max_new_tokens: int | None = None
    responses: Literal["given"] | None = None
    response_part: Literal["thinking", "answer"] | None = None
    control: Control | None = None
    cascade_of: tuple[str, str] | None = None
    model: ModelIdentity = field(default_factory=ModelIdentity)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the checkpoints that it is composed of; its own name if it is not composed."""
        return self.cascade_of or (self.name,)

    @property
    def weights_sha256(self) -> Mapping[str, str] | None:
        """Hashes of the weights by file, if known."""
        return self.model.weights_sha256

    def to_dict(self) -> dict[str, Any]:
        """All fields that are set, including those of `model`."""
        stored = {name: value for name in _own_fields() if (value := getattr(self, name)) is not None}
        if self.control is not None:
            stored["control"] = self.control.to_dict()
        if self.cascade_of is not None:
            stored["cascade_of"] = list(self.cascade_of)
        return stored | self.model.to_dict()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read what [`to_dict`] wrote.

        Raises:
            InputError: a key is missing or unknown.
        """
        own = {name: stored[name] for name in _own_fields() if name in stored}
        if control := own.get("control"):
            own["control"] = Control(control["control_of"], tuple(control["source_length_of"]))
        if cascade := own.get("cascade_of"):
            own["cascade_of"] = tuple(cascade)
        model = ModelIdentity.from_dict({name: value for name, value in stored.items() if name not in own})
        try:
            return cls(**own, model=model)
        except TypeError as error:
            raise InputError(f"the identity of the checkpoint cannot be read: {error}") from error


def cascade_name(transcriber: str, llm: str) -> str:
    """Name of a cascade in tables and figures."""
    return f"{transcriber} + {llm}"


def _own_fields() -> list[str]:
    return [field.name for field in fields(CheckpointIdentity) if field.name != "model"]


def read_schema(schema: str) -> tuple[str, int]:
    """Measurement and version of a schema such as `lsm-probe/attention/2`.

    Raises:
        InputError: the schema is not one of lsm-probe, or is from a later version.
    """
    program, _, rest = schema.partition("/")
    name, _, version = rest.rpartition("/")
    if program != "lsm-probe" or not name or version not in map(str, range(1, SCHEMA_VERSION + 1)):
        raise InputError(f"schema {schema!r} is unknown: this version of lsm-probe reads up to {SCHEMA_VERSION}")
    return name, int(version)


def upgrade_identity(checkpoint: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A checkpoint's identity in the current schema."""
    upgraded = dict(checkpoint)
    if version == 1 and "control" in checkpoint:
        llm, _, speech = checkpoint["name"].partition(" at length of ")
        upgraded["control"] = {"control_of": llm, "source_length_of": [speech] if speech else []}
    if version == 1 and "transcriber" in checkpoint:
        upgraded["cascade_of"] = checkpoint["name"].split(" + ", 1)
    return upgraded
