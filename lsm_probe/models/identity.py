"""The identity of a checkpoint: its kind, and hashes of its weights and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Self

from lsm_probe.errors import InputError

Checksums = Literal["verified", "unverified"]


@dataclass(frozen=True, kw_only=True)
class _Identity:
    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order of the fields; those that are None are left out."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {name: value.to_dict() if name in _PARTS else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what [`to_dict`] wrote.

        Raises:
            InputError: a key is unknown or missing.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{cls.__name__} is {values!r}: it must be a JSON object")
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            raise InputError(f"{cls.__name__} has unknown keys: {', '.join(unknown)}")
        if missing := sorted({field.name for field in fields(cls) if field.default is MISSING} - values.keys()):
            raise InputError(f"{cls.__name__} lacks: {', '.join(missing)}")
        parts = {name: part.from_dict(values[name]) for name, part in _PARTS.items() if name in values}
        return cls(**{**values, **parts})


@dataclass(frozen=True, kw_only=True)
class WeightsIdentity(_Identity):
    """Identity of one set of weights.

    Attributes:
        model_type: as in `config.json`.
        revision: commit on the model hub.
        checksums: whether the folder's `checksums.json` was found and matched; None if something else verifies the
            files.
        weights_sha256: sha256 (hexadecimal) of each file of weights.
    """

    model_type: str | None = None
    revision: str | None = None
    checksums: Checksums | None = None
    weights_sha256: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity(WeightsIdentity):
    """Identity of an LSM's audio tower; see [`LsmConfig`] for its two settings."""

    context: str
    decoder_states: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"decoder_states": self.decoder_states}


@dataclass(frozen=True, kw_only=True)
class ConnectorIdentity(_Identity):
    """Identity of a connector: its [`LsmProjectorConfig`], the seed of its first weights, whether it was trained."""

    settings: dict[str, Any]
    seed: int | None = None
    trained: bool

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return values.pop("settings") | values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        if isinstance(values, Mapping):
            own = {name: values[name] for name in ("seed", "trained") if name in values}
            values = {"settings": {name: value for name, value in values.items() if name not in own}, **own}
        return super().from_dict(values)


@dataclass(frozen=True, kw_only=True)
class TrainingIdentity(_Identity):
    """Identity of the changes that training made to a built-in checkpoint.

    Attributes:
        study: folder of `analyses/` that trained it.
        arm, seed: which of the study's arms.
        sha256: of the file that holds the changes.
    """

    study: str
    arm: str
    seed: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelIdentity(WeightsIdentity):
    """Identity of a checkpoint's weights and prompts; stored with every result.

    Attributes:
        encoder, llm, connector: for an LSM that was built from parts and has no folder.
        beats: the BEATs encoder that was added to a published checkpoint.
        published: name of the published system, if the checkpoint was read as one.
        settings: for a published checkpoint, settings that affect weights or responses but are not part of the weights:
            `lora_alpha`, `eos_token_ids`.
        prompt_sha256: sha256 (hexadecimal) of an example prompt.
        date: the date that a chat template writes as today's date.
        training: for a built-in arm.
        transcriber: for a cascade.
        adapter: for an adapter (PEFT) that was merged into its base; `weights_sha256` then lists the files of both.
    """

    encoder: EncoderIdentity | None = None
    llm: WeightsIdentity | None = None
    connector: ConnectorIdentity | None = None
    beats: WeightsIdentity | None = None
    published: str | None = None
    settings: dict[str, Any] | None = None
    prompt_sha256: str | None = None
    date: str | None = None
    training: TrainingIdentity | None = None
    transcriber: WeightsIdentity | None = None
    adapter: AdapterIdentity | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterIdentity(_Identity):
    """Identity of an adapter that was merged into its base.

    Attributes:
        peft_type: as in `adapter_config.json`.
        sha256: sha256 (hexadecimal) of `adapter_config.json` and of the adapter's weights.
        base: the model that it was merged into.
    """

    peft_type: str
    sha256: dict[str, str]
    base: ModelIdentity


_PARTS: dict[str, type[_Identity]] = {
    "encoder": EncoderIdentity,
    "llm": WeightsIdentity,
    "connector": ConnectorIdentity,
    "beats": WeightsIdentity,
    "training": TrainingIdentity,
    "transcriber": WeightsIdentity,
    "adapter": AdapterIdentity,
    "base": ModelIdentity,
}
