"""One stage of a run: from data and a model to a trained model, including out-of-memory errors and interruptions."""

from __future__ import annotations

import json
import platform
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import set_seed

from lsm_probe.assets.cache import cache_root
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError, WorkFailed
from lsm_probe.files import replacing
from lsm_probe.memory import MEMORY_ERRORS, is_out_of_memory, release_memory
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.progress import OnProgress
from lsm_probe.training.alignment import AlignmentSet
from lsm_probe.training.assembly import SHARDING_DEVICES, StageSettings, is_sharded, make_trainer
from lsm_probe.training.batches import optimizer_steps, smaller_pass
from lsm_probe.training.bias_in_stage import bias_callback
from lsm_probe.training.callbacks import ShowProgress
from lsm_probe.training.checkpoints import (
    check_same_data,
    disk_full_as_oserror,
    is_saved,
    last_complete_checkpoint,
    remove_unfinished,
    restore,
    step_of,
)
from lsm_probe.training.config import Stage, TrainConfig
from lsm_probe.training.dataset import TrainingSet
from lsm_probe.training.estimate import GIB
from lsm_probe.training.parameters import prepare_model, used_parameters
from lsm_probe.training.samples import read_samples, with_instructions_shuffled, with_speech_shuffled
from lsm_probe.training.start import start_model
from lsm_probe.training.states import SpeechStates
from lsm_probe.training.stopping import StepInterrupted, StopOnSignal, notice_signals_in_backward

_TRAIN_ALL = ("full", "layerwise_lr")
"""Strategies that store a gradient and optimizer state for every weight of the LLM."""


@dataclass
class StageRun:
    """One stage of a run. It starts with the LSM in `start` (None: as `config` defines) and writes an LSM to `target`.

    The `config` has its precision resolved; `folder` gets the stage's checkpoints and logs.
    """

    config: TrainConfig
    stage: Stage
    start: Path | None
    folder: Path
    target: Path
    on_error: OnError
    on_progress: OnProgress

    def __post_init__(self) -> None:
        self.machine = self.config.machine
        self.progress = ShowProgress(self.stage.name, self.on_progress)
        self.state = PartialState()
        self.stop = StopOnSignal(distributed=self.state.num_processes > 1)
        self.bias = bias_callback(self.config, self.stop, self.progress)

    def train(self) -> None:
        """Trains and saves. If memory runs out, it continues from the last checkpoint with smaller passes and more of
        them per step, so that the result stays the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with disk_full_as_oserror(self.folder):
                    return self._attempt()
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                release_memory(error)
                # Other processes wait for this one's part of the step, so they cannot go back together.
                if self.state.num_processes > 1 or self.machine.per_device_batch_size == 1:
                    raise WorkFailed(self._out_of_memory()) from error
            self._halve()

    def _out_of_memory(self) -> str:
        """Advice: first options for resuming this run, then options that need a new run."""
        size = self.machine.per_device_batch_size
        on_resume = []
        if size > 1:
            on_resume.append(f"machine.per_device_batch_size={self._smaller_pass()}")
        if not self.machine.gradient_checkpointing:
            on_resume.append("machine.gradient_checkpointing=true")
        anew = [*self._sharding_that_helps(), *(["strategy=lora"] if self.stage.strategy in _TRAIN_ALL else [])]
        advice = [
            *([f"continue with --resume and {' '.join(on_resume)}"] if on_resume else []),
            *([f"start a new run with {' or '.join(anew)} (--dry-run estimates its memory)"] if anew else []),
        ]
        what = f"memory ran out with {size} sample{'s' if size > 1 else ''} in a pass"
        return f"{what}: {', or '.join(advice) or 'take a smaller model'}"

    def _sharding_that_helps(self) -> list[str]:
        """Sharding settings that would reduce the memory per device."""
        if self.state.device.type not in SHARDING_DEVICES:
            return []
        copies = self.state.num_processes > 1 and self.machine.sharding != "fsdp"
        return ["machine.sharding=fsdp" if copies else "more GPUs (torchrun --nproc-per-node N) that share the weights"]

    def _smaller_pass(self) -> int:
        return smaller_pass(self.stage, self.machine, self.state.num_processes)

    def _halve(self) -> None:
        before = self.machine.per_device_batch_size
        smaller = self._smaller_pass()
        self.machine = self.machine.model_copy(update={"per_device_batch_size": smaller})
        warnings.warn(
            f"memory ran out with {before} samples in a pass: continuing with {smaller}; a step keeps its "
            f"{self.stage.batch_size}",
            stacklevel=2,
        )

    def _attempt(self) -> None:
        if self.state.is_main_process:
            remove_unfinished(self.folder)
        self.state.wait_for_everyone()
        [last] = broadcast_object_list([last_complete_checkpoint(self.folder) if self.state.is_main_process else None])
        self._show_preparing("loading the model", last)
        checkpoint = start_model(self.config.model, self.start, self.config.seed)
        self._place(checkpoint)
        if self.machine.gradient_checkpointing:
            model = checkpoint.model
            # The second is the name before transformers 5.23; version 6 will remove it.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self._show_preparing("reading the data", last)
        train_set, held_out = self._data(checkpoint)
        self._show_preparing("setting up", last)
        set_seed(self.config.seed)  # for the initial weights of adapters
        model = prepare_model(checkpoint.model, self.stage)
        if self.state.device.type == "cpu":
            notice_signals_in_backward(model)
        total = optimizer_steps(self.stage, len(train_set))
        if self.state.is_main_process:
            check_same_data(self.folder, train_set.samples, resumed=last is not None)
        trainer = make_trainer(
            StageSettings(
                config=self.config, stage=self.stage, machine=self.machine, folder=self.folder, state=self.state
            ),
            checkpoint,
            model,
            train_set,
            held_out,
            stop=self.stop,
            progress=self.progress,
            bias=self.bias,
            resumed=last is not None,
        )
        if last is not None and trainer.is_fsdp_enabled != (last / "pytorch_model_fsdp_0").is_dir():
            raise InputError(
                f"{last} was written with another sharding: continue with as many devices and the sharding of before"
            )
        began = time.monotonic()
        if last is not None and step_of(last) >= total:
            # Trained to the end, but killed before the model was written. The Trainer would take one step too many.
            if trainer.is_fsdp_enabled:
                raise InputError(
                    f"{last} is trained to the end, but a sharded run can only continue from an unfinished "
                    "checkpoint: delete it"
                )
            restore(trainer, last)
        else:
            with self.stop:
                try:
                    trainer.train(resume_from_checkpoint=None if last is None else str(last))
                except StepInterrupted:
                    self.stop.save_last_step(trainer, lambda: is_saved(self.folder, trainer.state.global_step))
        # A sharded run cannot be resumed after its last step, so it is finished instead.
        resumable = trainer.state.global_step < total or not trainer.is_fsdp_enabled
        if self.stop.signal is not None and resumable:
            raise self.stop.stopped_at(trainer.state.global_step, total)
        metrics = _last_evaluation(trainer)
        report = self._report(trainer, model, len(train_set), time.monotonic() - began, metrics)
        if self.state.is_main_process:
            _write_json(self.folder / "history.json", trainer.state.log_history)
            _write_json(self.folder / "report.json", report)
        _save_model(trainer, checkpoint, self.target)
        self.state.wait_for_everyone()  # the other processes read files that the main process has written

    def _place(self, checkpoint: Lsm) -> None:
        """Moves the model to this process's device. A sharded model stays on the CPU: accelerate moves one layer at a
        time and keeps a part of it, so that no device ever holds the whole model."""
        if is_sharded(self.machine, self.state):
            return
        try:
            checkpoint.model.to(self.state.device)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            size = sum(parameter.nbytes for parameter in checkpoint.model.parameters()) / GIB
            raise WorkFailed(
                f"the model's {size:.1f} GiB of weights do not fit on {self.state.device}: start a new run with "
                f"{''.join(self._sharding_that_helps()) or 'a smaller model'}"
            ) from error

    def _show_preparing(self, what: str, last: Path | None) -> None:
        if self.state.is_main_process:
            self.progress.show_preparing(what, 0 if last is None else step_of(last))

    def _data(self, checkpoint: Lsm) -> tuple[TrainingSet, dict[str, TrainingSet]]:
        stage, seed = self.stage, self.config.seed
        given: dict[str, Any] = {"tasks": stage.tasks, "on_error": self.on_error}
        train = read_samples(stage.train, limit=stage.limit, **given)
        held_out = read_samples(stage.eval, limit=stage.eval_limit, **given) if stage.eval else []
        states = None
        if self.config.cache_features:
            dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
            states = SpeechStates(cache_root() / "states", checkpoint, dtype)
            train, held_out = self._encode(states, checkpoint, train, held_out)
        if stage.strategy == "align":
            # No controls: an alignment does not read the instruction, and other speech may be shorter than the target.
            aligned: dict[str, TrainingSet] = {}
            if held_out:
                aligned["true"] = AlignmentSet(held_out, checkpoint, states, self.on_error)
            return AlignmentSet(train, checkpoint, states, self.on_error), aligned
        sets = {}
        if held_out:
            sets["true"] = TrainingSet(held_out, checkpoint, states, self.on_error)
            views = {
                "speech": with_speech_shuffled(sets["true"].samples, seed),
                "instruction": with_instructions_shuffled(sets["true"].samples, seed),
            }
            sets |= {name: TrainingSet(view, checkpoint, states) for name, view in views.items() if view}
        return TrainingSet(train, checkpoint, states, self.on_error), sets

    def _encode(self, states: SpeechStates, checkpoint: Lsm, *sets: list[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Fills the cache, with a share for each process, and leaves out samples that could not be encoded."""
        problems = Problems()
        missing = states.missing([sample for samples in sets for sample in samples])
        self.state.wait_for_everyone()  # no process may add to the cache before all have listed what is missing
        share = missing[self.state.process_index :: self.state.num_processes]
        encoder: Any = checkpoint.model.audio_tower
        before = next(encoder.parameters()).device  # the CPU, for a model that is sharded later
        encoder.to(self.state.device)
        states.fill(checkpoint, share, problems, on_progress=self.on_progress)
        encoder.to(before)
        problems.found = gather_object(problems.found)
        problems.settle(self.on_error)
        if len(states.missing(missing)) > len(problems.found):
            raise InputError(
                f"{states.folder} is not one folder for all processes: set LSM_PROBE_CACHE to a shared one"
            )
        train, held_out = ([sample for sample in samples if sample in states] for samples in sets)
        return train, held_out

    def _report(
        self, trainer: Any, model: Any, samples: int, seconds: float, metrics: dict[str, float]
    ) -> dict[str, Any]:
        parameters = [parameter for _, parameter in used_parameters(model)]
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        return {
            "stage": self.stage.name,
            "steps": trainer.state.global_step,
            "samples": samples,
            "parameters": {"all": sum(p.numel() for p in parameters), "trained": trained},
            "precision": self.config.precision,
            "processes": self.state.num_processes,
            "per_device_batch_size": self.machine.per_device_batch_size,
            "gradient_accumulation": trainer.args.gradient_accumulation_steps,
            "tokens": int(trainer.state.num_input_tokens_seen),
            "seconds": round(seconds, 1),
            "tokens_per_second": round(self.progress.tokens_per_second, 1),
            "evaluation": metrics,
            "stopped": None if self.bias is None else self.bias.stopped,
            "device": str(self.state.device),
            "versions": {name: version(name) for name in ("lsm-probe", "torch", "transformers", "accelerate", "peft")}
            | {"python": platform.python_version()},
        }


def _last_evaluation(trainer: Any) -> dict[str, float]:
    """The evaluation of the trained model; it is reused if the last step ended with one."""
    if not trainer.held_out:
        return {}
    done = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if not done or done[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
        done = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {key: value for key, value in done[-1].items() if key.startswith("eval_")}


def _save_model(trainer: Any, checkpoint: Lsm, folder: Path) -> None:
    """Writes the LSM in float32, adapters merged and shards joined. All processes call it; the main one writes."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()  # in every process, because each has a part of the shards
    state = trainer.accelerator.get_state_dict(model)
    if not trainer.is_world_process_zero():
        return
    for tied in getattr(model, "all_tied_weights_keys", {}):
        state.pop(tied, None)  # gathered from shards it is a copy, which safetensors would write twice
    checkpoint.model = model
    checkpoint.save(folder, state_dict=state)


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
