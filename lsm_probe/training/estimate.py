"""Estimates a run before it starts: parameters, optimizer steps, memory. No weights are loaded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lsm_probe.data.manifest import manifest_lines
from lsm_probe.errors import InputError
from lsm_probe.models import LsmConfig, LsmForConditionalGeneration
from lsm_probe.models.causal_llm import is_causal
from lsm_probe.models.connectors import num_speech_tokens
from lsm_probe.models.speech_encoder import num_states
from lsm_probe.training.alignment import CANDIDATES
from lsm_probe.training.batches import accumulation, optimizer_steps, warmup_steps
from lsm_probe.training.config import Machine, Stage, TrainConfig
from lsm_probe.training.parameters import CONNECTOR, prepare_model, used_parameters
from lsm_probe.training.shapes import model_config

GIB = 2**30
SPEECH_MEL_FRAMES = 3000
"""Length of the speech that memory is estimated for: 30 s, the longest piece."""
PROMPT_TOKENS = 60
RESPONSE_TOKENS = 60

ENCODER, CONNECTOR_PART, EMBEDDINGS, LAYERS, ADAPTERS = "encoder", "connector", "LLM embeddings", "LLM layers", "LoRA"


@dataclass(frozen=True)
class Part:
    """A part of the model: its number of parameters, and how many of them are trained."""

    name: str
    parameters: int
    trainable: int


@dataclass(frozen=True)
class StageEstimate:
    """The estimate for one stage."""

    name: str
    strategy: str  # the training strategy
    # `encoder`, `connector`, `LLM embeddings` (with the head, if it has its own weights), `LLM layers`, and under
    # `lora` the adapters.
    parts: tuple[Part, ...]
    samples: int | None  # in its training set; None if unknown
    samples_from: str  # the origin of this number, or what is missing
    batch_size: int  # samples in an optimizer step
    accumulation: int  # forward passes of each process in an optimizer step
    steps: int | None  # optimizer steps; None if both samples and `max_steps` are unknown
    warmup_steps: int | None  # the first steps, in which the learning rate rises
    memory: dict[str, int]  # estimated bytes on each device, by content; see [`memory`]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        return sum(part.trainable for part in self.parts)


@dataclass(frozen=True)
class Estimate:
    """The estimate for a run: its stages, the assumptions about memory, and the launch line."""

    stages: tuple[StageEstimate, ...]
    assumptions: str
    launch: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values; memory in GiB."""
        values = asdict(self)
        for stage, made in zip(self.stages, values["stages"], strict=True):
            made |= {"parameters": stage.parameters, "trainable": stage.trainable}
            sizes = stage.memory | {"total": sum(stage.memory.values())}
            gib = {name: round(size / GIB, 3) for name, size in sizes.items()}
            made["memory"] = {"unit": "GiB on each device, estimated", **gib}
        return values


def estimate(config: TrainConfig, arguments: Sequence[str] = ("CONFIG",)) -> Estimate:
    """Estimates a run; `arguments` are config, overrides and options as the user gave them, for the launch line.

    Raises:
        InputError: a model of the config is unknown, of the wrong kind or does not fit the others; a manifest is not
            JSON; or the batch size does not divide into whole forward passes.
    """
    lsm_config = _lsm_config(config)
    stages = tuple(_estimate_stage(config, lsm_config, stage) for stage in config.resolved_stages())
    devices = config.machine.devices
    start = "lsm-probe" if devices == 1 else f"torchrun --nproc-per-node {devices} -m lsm_probe"
    launch = f"{start} train {shlex.join(arguments)}{'' if '--out' in arguments else ' --out DIR'}"
    return Estimate(stages, _assumptions(config, lsm_config, stages[0]), launch)


def _estimate_stage(config: TrainConfig, lsm_config: LsmConfig, stage: Stage) -> StageEstimate:
    parts = count_parameters(lsm_config, stage)
    samples, samples_from = count_samples(stage, config.expected_samples)
    steps = stage.max_steps if samples is None else optimizer_steps(stage, samples)
    return StageEstimate(
        stage.name,
        stage.strategy,
        parts,
        samples,
        samples_from,
        stage.batch_size,
        accumulation(stage, config.machine, config.machine.devices),
        steps,
        None if steps is None else warmup_steps(stage, steps),
        memory(config, lsm_config, stage, parts),
    )


def _lsm_config(config: TrainConfig) -> LsmConfig:
    model = config.model
    if model.start is not None:
        start = model_config(model.start)
        if not isinstance(start, LsmConfig):
            raise InputError(f"model.start {model.start} is a {start.model_type!r} model, no LSM of this package")
        return start
    encoder, llm = model_config(model.encoder), model_config(model.llm)
    if encoder.model_type != "whisper":
        raise InputError(f"model.encoder {model.encoder} is a {encoder.model_type!r} model: give a Whisper of any size")
    if not is_causal(llm):
        raise InputError(f"model.llm {model.llm} is a {llm.model_type!r} model: give a causal text LLM")
    return LsmConfig(
        audio_config=encoder,
        projector_config=model.projector(),
        text_config=llm,
        encoder_context=model.encoder_context,
        decoder_states=model.decoder_states,
    )


def count_parameters(config: LsmConfig, stage: Stage) -> tuple[Part, ...]:
    """The parts of a model with this configuration, frozen or trained as the stage defines."""
    with torch.device("meta"):
        model = LsmForConditionalGeneration(config)
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(table.weight) for table in tables if table is not None}
    counts: dict[str, list[int]] = {}
    for name, parameter in used_parameters(prepare_model(model, stage)):
        count = counts.setdefault(_part(name, id(parameter) in embeddings), [0, 0])
        count[0] += parameter.numel()
        count[1] += parameter.numel() * parameter.requires_grad
    return tuple(Part(name, *count) for name, count in counts.items())


def _part(name: str, is_embedding: bool) -> str:
    if "audio_tower" in name:
        return ENCODER
    if CONNECTOR in name:
        return CONNECTOR_PART
    if is_embedding:
        return EMBEDDINGS
    return ADAPTERS if "lora_" in name else LAYERS


def count_samples(stage: Stage, expected: int | None) -> tuple[int | None, str]:
    """Number of samples that a stage trains on, and the origin of that number.

    It counts lines of the stage's tasks, up to the limit of each manifest; the content of lines is not checked.
    """
    missing = [path for path in stage.train if not path.is_file()]
    if stage.train and not missing:
        return sum(_count_lines(path, stage) for path in stage.train), "counted"
    if expected is not None:
        most = stage.limit * max(1, len(stage.train)) if stage.limit else expected
        return min(expected, most), "expected_samples"
    return None, f"{missing[0]} is not here" if missing else "give train=..."


def _count_lines(path: Path, stage: Stage) -> int:
    lines = manifest_lines(path)
    found = sum(stage.tasks is None or _task(path, number, line) in stage.tasks for number, line in lines)
    return min(found, stage.limit or found)


def _task(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)["task"]
    except (KeyError, TypeError):  # no task, or not an object, which `lsm-probe data validate` reports
        return None
    except (ValueError, RecursionError):
        raise InputError(f"{path}, line {number}: is not JSON; write one JSON object a line") from None


def memory(config: TrainConfig, lsm_config: LsmConfig, stage: Stage, parts: Sequence[Part]) -> dict[str, int]:
    """Bytes on each device at the end of a forward pass, when memory use is highest.

    - `weights`: 4 for each parameter, and `gradients` 4 and `AdamW` 8 for each trained one; all divided by the number
      of devices under FSDP, and the gradients twice under DDP, whose buckets are a copy.
    - `gathered` (FSDP) or `bfloat16 copy` (else, under bf16): weights in the form used to compute; [`_compute_copies`].
    - `activations`: of the LLM; see [`_activations`]. Those of the connector, some percent of the LLM's, are left out,
      and the frozen encoder stores none.
    - `logits`: three float32 of the vocabulary's size for each response token (logits, log-probabilities, gradient).

    Strategy `align` does not run the LLM: it has no `activations`, and `logits` of `CANDIDATES` tokens for each speech
    token.
    """
    machine = config.machine
    shards = machine.devices if _sharding(machine) == "fsdp" else 1
    gradient_copies = 2 if machine.devices > shards else 1
    total, trained = sum(part.parameters for part in parts), sum(part.trainable for part in parts)
    if stage.strategy == "align":
        in_passes = {"logits": 12 * CANDIDATES * _speech_tokens(lsm_config) * machine.per_device_batch_size}
    else:
        vocabulary = lsm_config.text_config.vocab_size
        in_passes = {
            "activations": _activations(config, lsm_config, stage),
            "logits": 12 * vocabulary * RESPONSE_TOKENS * machine.per_device_batch_size,
        }
    return {
        "weights": 4 * total // shards,
        "gradients": 4 * trained * gradient_copies // shards,
        "AdamW": 8 * trained // shards,
        **_compute_copies(config, lsm_config, parts, shards),
        **in_passes,
    }


def _compute_copies(config: TrainConfig, lsm_config: LsmConfig, parts: Sequence[Part], shards: int) -> dict[str, int]:
    """Bytes of the weights used to compute, if these differ from the stored ones.

    Autocast casts connector and LLM and keeps the casts until the backward pass. FSDP gathers two layers at a time, and
    everything outside the layers for the whole pass; gradients of trained weights take the same memory again.
    """
    width = _width(config)
    sizes = {part.name: part for part in parts}
    used = sum(part.parameters for part in parts if part.name != ENCODER)
    if shards == 1:
        return {"bfloat16 copy": 2 * used} if width == 2 else {}
    layers = [sizes[name] for name in (LAYERS, ADAPTERS) if name in sizes]
    in_layers = sum(part.parameters for part in layers)
    two_layers = 2 * in_layers // lsm_config.text_config.num_hidden_layers
    gathered = width * (used - in_layers + two_layers)
    return {"gathered": gathered * (2 if sizes[LAYERS].trainable else 1)}


def _activations(config: TrainConfig, lsm_config: LsmConfig, stage: Stage) -> int:
    """Bytes that the LLM's layers store for the backward pass.

    For each token, a layer like Llama's stores these numbers, with widths `hidden` (h), `keys and values` (k), `MLP`
    (m):

    - weights trained or adapted: 4 h in float32 (norms), and in the dtype of computation 7 h (float32: 4 h) + 2 k + 4 m
      (inputs of the linear layers, which autocast casts once for each, queries, keys, values, MLP activations);
    - weights frozen: 2 h in float32, and 2 h + 2 k + 3 m.

    With checkpointing, a layer stores its input, h in float32, and one layer at a time is recomputed.
    """
    text, width = lsm_config.text_config, _width(config)
    hidden, heads = text.hidden_size, text.num_attention_heads
    mlp = getattr(text, "intermediate_size", None) or 4 * hidden
    head_width = getattr(text, "head_dim", None) or hidden // heads
    keys = head_width * (getattr(text, "num_key_value_heads", None) or heads)
    if stage.strategy == "frozen_llm":
        layer = 4 * 2 * hidden + width * (2 * hidden + 2 * keys + 3 * mlp)
    else:
        layer = 4 * 4 * hidden + width * ((7 if width == 2 else 4) * hidden + 2 * keys + 4 * mlp)
    kept = text.num_hidden_layers * layer
    if config.machine.gradient_checkpointing:
        kept = text.num_hidden_layers * 4 * hidden + layer
    tokens = _speech_tokens(lsm_config) + PROMPT_TOKENS + RESPONSE_TOKENS
    return tokens * config.machine.per_device_batch_size * kept


def _speech_tokens(lsm_config: LsmConfig) -> int:
    states = num_states(torch.tensor([SPEECH_MEL_FRAMES]), lsm_config.decoder_states)
    return num_speech_tokens(lsm_config.projector_config, int(states))


def _width(config: TrainConfig) -> int:
    """Bytes per number in computation: for GPUs if the run uses several, else for this machine's device."""
    machine = config.machine
    gpu = machine.device == "auto" and (machine.devices > 1 or torch.cuda.is_available())
    return 2 if config.with_precision_for(torch.device("cuda" if gpu else "cpu")).precision == "bf16" else 4


def _sharding(machine: Machine) -> str:
    """The kind of sharding; on CPU accelerate has no FSDP and copies the model."""
    return "ddp" if machine.device == "cpu" else machine.sharding


def _assumptions(config: TrainConfig, lsm_config: LsmConfig, stage: StageEstimate) -> str:
    machine = config.machine
    loading = ""
    if machine.devices > 1 and machine.device != "cpu":
        loading = f"; to load, each process takes {4 * stage.parameters / GIB:.1f} GiB of the host's memory besides"
    devices = f", {machine.devices} devices ({_sharding(machine)})" if machine.devices > 1 else ""
    tokens = f"{_speech_tokens(lsm_config)} speech (30 s), {PROMPT_TOKENS} prompt and {RESPONSE_TOKENS} response tokens"
    return (
        f"{machine.per_device_batch_size} samples at a time of {tokens}, "
        f"computed in {'bfloat16' if _width(config) == 2 else 'float32'}, "
        f"activations {'checkpointed' if machine.gradient_checkpointing else 'kept'}{devices}{loading}"
    )
