"""The settings of a training run: YAML, presets and `key=value`, merged into one typed object."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from lsm_probe.data.manifest import explain
from lsm_probe.errors import InputError
from lsm_probe.files import NOT_HOME
from lsm_probe.formats import load_yaml
from lsm_probe.hardware import computes_natively
from lsm_probe.models.connectors import CONNECTORS, LsmProjectorConfig


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


def _read_rates(value: Any) -> Any:
    """Replaces a file of `lsm-probe importance --write-lr-schedule` by its rates, so that the config stores them."""
    if not isinstance(value, str | Path):
        return value
    try:
        return load_yaml(Path(value).read_bytes())["rates"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{value} holds no rates ({reason}): write it with lsm-probe importance") from None


Manifests = Annotated[list[Path], BeforeValidator(_as_list)]
Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow", "comet_ml", "clearml", "swanlab"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Settings):
    """The model to train.

    Args:
        start: an LSM to continue training (a folder, a hub name, or a built-in one such as `builtin:open_vanilla_asr`);
            the settings below are then ignored.
        encoder: a Whisper of any size: folder, hub name, or `builtin:encoder` (tiny.en).
        llm: a decoder-only causal LM: folder, hub name, or `builtin:llm` (SmolLM2-135M-Instruct).
        template: prompt template; the tokenizer's own chat template where it has one, else `vicuna`.
        connector: settings of [`LsmProjectorConfig`], its `connector` the kind.
        encoder_context: `full` (Whisper reads 30 s, padded with silence), `padded` (the silence counts as speech),
            `trimmed` (only the utterance) or `clip` (the mel features, too, come only from the utterance).
        decoder_states: LLaSM's audio tower: states of Whisper's decoder over this many start tokens.
    """

    start: str | None = None
    encoder: str = "builtin:encoder"
    llm: str = "builtin:llm"
    template: str | None = None
    connector: dict[str, Any] = {}
    encoder_context: Literal["full", "padded", "trimmed", "clip"] = "full"
    decoder_states: Annotated[int, Field(gt=0)] | None = None

    @field_validator("connector")
    @classmethod
    def _known(cls, connector: dict[str, Any]) -> dict[str, Any]:
        known = inspect.get_annotations(LsmProjectorConfig)
        kind = connector.get("connector", LsmProjectorConfig.connector)
        if kind in CONNECTORS:
            known = known | dict.fromkeys(CONNECTORS[kind].sizes, "int")
        if unknown := sorted(connector.keys() - known.keys()):
            raise ValueError(f"has no setting {unknown[0]!r}; its settings are: {', '.join(known)}")
        for key, value in connector.items():
            # The type names that LsmProjectorConfig writes; `window` is a number or a word.
            kinds: dict[str, Any] = {"int": int, "float": int | float, "str": str, "bool": bool}
            fits = [kinds[name] for name in known[key].replace("Literal['length']", "str").split(" | ")]
            is_bool = isinstance(value, bool)
            if value is not None and not any(isinstance(value, kind) and is_bool == (kind is bool) for kind in fits):
                raise ValueError(f"{key} is {value!r}; it must be of type {known[key]}")
        return connector

    def projector(self) -> LsmProjectorConfig:
        """The connector's configuration.

        Raises:
            InputError: a value is out of range.
        """
        try:
            return LsmProjectorConfig(**self.connector)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise InputError(f"model.connector: {' '.join(str(error).split())[:200]}") from error


class LoraSettings(_Settings):
    """Adapters on all linear layers of the LLM's attention and MLP; alpha is twice the rank."""

    rank: Annotated[int, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


RATED = ("layerwise_lr", "lora")
"""The strategies that can give each layer its own learning rate."""


class Stage(_Settings):
    """One stage: the trained parts, the data and the learning rates.

    Args:
        name: name of the stage's folder, if there are several stages.
        train: manifests whose samples have `audio` and `target`.
        eval: manifests of held-out samples.
        tasks: use only samples of these tasks.
        limit: use only the first samples of each set.
        strategy: `full` (connector and LLM), `layerwise_lr` (the same, with a learning rate for each layer of the LLM),
            `frozen_llm` (only the connector), `lora` (connector, and adapters in the LLM) or `align` (only the
            connector, without the LLM: CTC moves each speech token towards the embedding of a target token; a first
            stage before the others, on transcripts). The encoder is frozen in all of them.
        layer_rates: for `layerwise_lr`, and if wanted for the adapters of `lora`: what `lsm-probe importance
            --write-lr-schedule` wrote, or the list of rates itself, as multiples of `learning_rate`; for the layers'
            weight matrices alone.
        epochs: passes over the training set, unless `max_steps` is given.
        max_steps: optimizer steps.
        batch_size: samples in one optimizer step, over all processes and accumulation.
        learning_rate: peak, for the LLM, and for the connector unless `connector_learning_rate` is given.
        weight_decay: for weight matrices; biases and norms have none.
        warmup: linear warm-up: number of steps, or, if below 1, the share of all steps.
        schedule: after warm-up: `linear` or `cosine` to 0, or `constant`.
        max_grad_norm: gradients are scaled down to this norm; 0 disables this.
    """

    name: str = Field("train", pattern=r"^[\w-]+$")
    train: Manifests = []
    eval: Manifests = []
    tasks: list[str] | None = None
    limit: Annotated[int, Field(gt=0)] | None = None
    eval_limit: Annotated[int, Field(gt=0)] | None = None
    strategy: Literal["full", "layerwise_lr", "frozen_llm", "lora", "align"] = "full"
    layer_rates: Annotated[list[Positive] | None, BeforeValidator(_read_rates)] = None
    lora: LoraSettings = LoraSettings()
    epochs: Positive = 1.0
    max_steps: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] = 8
    learning_rate: Positive = 2e-5
    connector_learning_rate: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    warmup: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 100
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _has_its_rates(self) -> Self:
        if self.strategy == "layerwise_lr" and self.layer_rates is None:
            raise ValueError("strategy=layerwise_lr needs layer_rates: a file of importance --write-lr-schedule")
        return self


class Machine(_Settings):
    """Settings that change the speed of a run but not its results (up to rounding); they may differ when resuming.

    Args:
        device: `auto` uses CUDA if available, `cpu` never does.
        devices: number of processes in the launch line of `--dry-run`, which its memory estimate assumes.
        sharding: with several GPUs `fsdp` shards weights, gradients and optimizer, `ddp` copies them.
        per_device_batch_size: samples in one forward pass; halved if memory runs out.
        gradient_checkpointing: recompute activations in the backward pass instead of storing them.
        workers: processes that read data; 0 reads in the training process.
        log_steps, save_steps: optimizer steps between two log lines and between two checkpoints.
        report_to: where losses are reported besides `history.json`.
    """

    device: Literal["auto", "cpu"] = "auto"
    devices: Annotated[int, Field(gt=0)] = 1
    sharding: Literal["fsdp", "ddp"] = "fsdp"
    per_device_batch_size: Annotated[int, Field(gt=0)] = 8
    gradient_checkpointing: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    log_steps: Annotated[int, Field(gt=0)] = 10
    save_steps: Annotated[int, Field(gt=0)] = 500
    report_to: list[Tracker] = ["tensorboard"]


class TrainConfig(Stage):
    """A whole run. The settings of a stage apply to all `stages`, and each of these may override some.

    Args:
        precision: `bf16` computes in bfloat16 and keeps weights, gradients and optimizer in float32 (autocast; with
            sharding the weights are cast, so that norms also compute in bfloat16); `float32` also computes in float32.
            `auto`: bf16 on a CUDA device or CPU with bfloat16 instructions, float32 elsewhere. A run is resumed only
            with the precision it was started with.
        cache_features: encode each utterance once and keep the frozen encoder's states on disk.
        eval_steps: optimizer steps between two evaluations; one is made before the first step and one after the last.
        seed: of the connector's first weights, the order of the data, and dropout.
        expected_samples: size of the training set, for `--dry-run` if the set is not available.
        probe_every: optimizer steps between two probings of eta, D_i and D_s (see [`BiasCallback`]); `auto` probes as
            often as 5 % of the time allows. By default there are no probings: each takes the time of several steps.
        probe_samples: manifest of the samples that are probed, such as `builtin:commands`.
        probe_limit: number of these samples, spread over the utterances.
        probe_base: the text LLM whose own responses are measured, such as `model.llm`'s; by default the samples'
            targets are measured.
        probe_stop_below: training stops if one of these numbers falls below its bound, such as `{D_i: 0.1}`.
    """

    model: ModelSettings = ModelSettings()
    stages: list[dict[str, Any]] = []
    precision: Literal["auto", "bf16", "float32"] = "auto"
    cache_features: bool = False
    eval_steps: Annotated[int, Field(gt=0)] = 500
    seed: Annotated[int, Field(ge=0)] = 0
    expected_samples: Annotated[int, Field(gt=0)] | None = None
    probe_every: Annotated[int, Field(gt=0)] | Literal["auto"] | None = None
    probe_samples: str = "builtin:commands"
    probe_limit: Annotated[int, Field(gt=0)] = 8
    probe_base: str | None = None
    probe_stop_below: dict[str, float] = {}
    machine: Machine = Machine()

    @field_validator("stages")
    @classmethod
    def _rates_are_numbers(cls, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [s | {"layer_rates": _read_rates(s["layer_rates"])} if "layer_rates" in s else s for s in stages]

    @model_validator(mode="after")
    def _stages_are_valid(self) -> TrainConfig:
        names = [stage.name for stage in self.resolved_stages()]
        if len(names) != len(set(names)):
            raise ValueError(f"lists stages of one name ({', '.join(names)}); give each its own 'name'")
        self._check_rates()
        return self

    def _check_rates(self) -> None:
        rated = [stage.strategy in RATED for stage in self.resolved_stages()]
        unused = any("layer_rates" in given and not uses for given, uses in zip(self.stages, rated, strict=False))
        if unused or (self.layer_rates and not any(rated)):
            raise ValueError(f"gives layer_rates, which only the strategies {' and '.join(RATED)} use")

    def resolved_stages(self) -> list[Stage]:
        """The stages in order, each with all its settings; a single one if none are listed."""
        common = {key: getattr(self, key) for key in Stage.model_fields}
        stages = []
        for changed in self.stages or [{}]:
            try:
                stages.append(Stage.model_validate(common | changed))
            except ValidationError as error:
                raise ValueError(f"stage {changed.get('name', '')!r}: {explain(error)}") from None
        return stages

    def with_precision_for(self, device: torch.device) -> TrainConfig:
        """This config with `auto` precision resolved for the run's device."""
        if self.precision != "auto":
            return self
        bf16 = device.type in ("cuda", "cpu") and computes_natively(torch.bfloat16, device)
        return self.model_copy(update={"precision": "bf16" if bf16 else "float32"})

    def deciding(self) -> dict[str, Any]:
        """Everything that affects the result, as plain values: settings that must not change when a run is resumed."""
        watching = {key for key in type(self).model_fields if key.startswith("probe_")}
        decides = bool(self.probe_every and self.probe_stop_below)  # otherwise probing does not change the weights
        return self.model_dump(mode="json", exclude={"machine", "expected_samples"} | (set() if decides else watching))


def presets() -> list[str]:
    """Names of the configs that come with the package."""
    root = _preset_folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def read_config(name: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a config: a preset or a YAML file, then `key=value` on top.

    A file may name a preset or another file, relative to its own folder, in `base`, and hold only the differences.
    Keys of nested settings are joined with dots (`machine.workers=2`, `stages.align.epochs=3`), values are YAML.

    Raises:
        InputError: the preset or file does not exist, it is not YAML, or a setting is unknown or out of range.
    """
    values = _read(str(name), seen=())
    for override in overrides:
        _set(values, override)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"config {name}: {explain(error)}") from None


def _read(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise InputError(f"config {name}: is its own base ({' -> '.join([*seen, name])})")
    path = _preset_folder() / f"{name}.yaml" if name in presets() else Path(name)
    try:
        values = load_yaml(path.read_bytes())
    except FileNotFoundError:
        home = f" ({NOT_HOME})" if name.startswith("~") else ""
        known = ", ".join(presets())
        raise InputError(f"config {name}: no such file{home}, nor a preset; presets are: {known}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"config {name} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise InputError(f"config {name}: holds no settings; write `key: value` lines")
    base = values.pop("base", None)
    if base is None:
        return values
    below = str(base) if base in presets() else os.path.normpath(path.parent / str(base))
    return _merged(_read(below, (*seen, name)), values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = [key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)]
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}


def _set(values: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found or not key:
        raise InputError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        if isinstance(place, list):  # of stages
            place = next((entry for entry in place if isinstance(entry, dict) and entry.get("name") == parent), None)
        else:
            place = place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise InputError(f"override {override!r}: {parent!r} holds no settings of its own")
    if isinstance(place, list):
        raise InputError(f"override {override!r}: name the stage and one of its settings, stages.NAME.KEY=VALUE")
    try:
        place[last] = load_yaml(value)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or error
        raise InputError(f"override {override!r}: the value is not YAML ({reason}); put it in quotes") from None


def _preset_folder() -> Path:
    return Path(str(resources.files("lsm_probe") / "training" / "presets"))
