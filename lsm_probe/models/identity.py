"""What distinguishes one checkpoint from another: its kind, and hashes of its weights and of its prompts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from transformers import PreTrainedConfig

from lsm_probe.assets.cache import SEAL, sha256
from lsm_probe.checksums import read_checksums, verify
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_names import require_folder
from lsm_probe.models.prompts import prompt_sha256

Checksums = Literal["verified", "unverified"]


@dataclass(frozen=True, kw_only=True)
class _Identity:
    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order of the fields; those that are None are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.to_dict() if isinstance(value, _Identity) else value
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what [`to_dict`] wrote.

        Raises:
            InputError: it has a key that is not known, or lacks one.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{cls.__name__} is {values!r}: it must be a JSON object")
        values = cls._by_field(values)
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if unknown := sorted(values.keys() - known):
            raise InputError(f"{cls.__name__} has unknown keys: {', '.join(unknown)}")
        if missing := sorted(needed - values.keys()):
            raise InputError(f"{cls.__name__} lacks: {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def _by_field(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values for the fields, from what [`to_dict`] wrote."""
        return values


@dataclass(frozen=True, kw_only=True)
class WeightsIdentity(_Identity):
    """Identity of one set of weights.

    Attributes:
        model_type: as in `config.json`.
        revision: commit on the model hub.
        checksums: whether the folder's `checksums.json` was there and held; None where something else vouches for it.
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
    """Identity of a connector.

    Attributes:
        settings: those of its [`LsmProjectorConfig`].
        seed: its weights were drawn from it.
        trained: whether it was trained since.
    """

    settings: dict[str, Any]
    seed: int | None = None
    trained: bool

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return values.pop("settings") | values

    @classmethod
    def _by_field(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        own = {name: values[name] for name in ("seed", "trained") if name in values}
        return {"settings": {name: value for name, value in values.items() if name not in own}, **own}


@dataclass(frozen=True, kw_only=True)
class TrainingIdentity(_Identity):
    """Identity of what training changed in a built-in checkpoint.

    Attributes:
        study: folder of `analyses/` that trained it.
        arm: of the study.
        seed: of the arm.
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
        encoder, llm, connector: of an LSM that was built from parts and is in no folder.
        prompt_sha256: sha256 (hexadecimal) of an example prompt.
        date: what a chat template writes as today's date.
        training: of a built-in arm.
        transcriber: of a cascade.
    """

    encoder: EncoderIdentity | None = None
    llm: WeightsIdentity | None = None
    connector: ConnectorIdentity | None = None
    prompt_sha256: str | None = None
    date: str | None = None
    training: TrainingIdentity | None = None
    transcriber: WeightsIdentity | None = None

    @classmethod
    def _by_field(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: _PARTS[name].from_dict(value) if name in _PARTS else value for name, value in values.items()}


_PARTS: dict[str, type[_Identity]] = {
    "encoder": EncoderIdentity,
    "llm": WeightsIdentity,
    "connector": ConnectorIdentity,
    "training": TrainingIdentity,
    "transcriber": WeightsIdentity,
}


class PromptWriter(Protocol):
    """What [`describe_prompt`] needs of a checkpoint."""

    @property
    def date(self) -> str | None:
        """What its chat template writes as today's date; None if it writes none."""

    def example_prompt(self) -> Sequence[tuple[int, object]]:
        """A prompt with fixed words in the place of instruction and source, cut into segments."""


def check_folder(folder: str | Path) -> Checksums | None:
    """Verifies a local folder before anything of it is read.

    Returns:
        `verified`, or `unverified` for a folder without checksums; None where something else vouches for the files: a
        hub name's revision, a built-in checkpoint's pin.

    Raises:
        InputError: the checksums do not hold, or there is no such folder and the name is none of the hub's.
    """
    require_folder(folder)
    path = Path(folder)
    if not path.is_dir():
        return None
    if verify(path):
        return "verified"
    return None if (path / SEAL).is_file() else "unverified"


def identify(folder: str | Path, config: PreTrainedConfig, checksums: Checksums | None = None) -> WeightsIdentity:
    """Identifies the weights of a folder or hub name.

    Args:
        folder: folder or hub name.
        config: the configuration that was read from it.
        checksums: what [`check_folder`] returned for it.
    """
    # The first kind that is there is what transformers loads.
    weights = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("pytorch_model*.bin"))
    known = read_checksums(Path(folder)) if checksums == "verified" else {}  # read once, not twice
    hashes = {path.name: known[path.name]["sha256"] if path.name in known else sha256(path) for path in weights}
    return WeightsIdentity(
        model_type=config.model_type,
        revision=getattr(config, "_commit_hash", None) or None,
        checksums=checksums,
        weights_sha256=hashes or None,
    )


def describe_prompt(writer: PromptWriter, name: str, date: str | None) -> dict[str, Any]:
    """The fields of [`ModelIdentity`] that distinguish the prompts of one checkpoint from those of another.

    Args:
        writer: the checkpoint.
        name: how the warning calls it.
        date: the date that was asked for, if any.

    Returns:
        `prompt_sha256` and `date`. Empty if the template renders no prompt: whoever asks for a prompt is told why.

    Warns:
        UserWarning: a date was asked for that the template does not print.
    """
    try:
        example = writer.example_prompt()
    except (InputError, LookupError):
        return {}
    written = writer.date
    if date is not None and written is None:
        warnings.warn(f"--date {date} changes nothing: the prompt template of {name} writes no date", stacklevel=3)
    return {"prompt_sha256": prompt_sha256(example), "date": written}
