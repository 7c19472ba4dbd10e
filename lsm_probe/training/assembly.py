"""Builds the Trainer of a stage, with its arguments and callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PrinterCallback, TrainingArguments

from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.configuration_lsm import SPEECH_ALONE
from lsm_probe.training.alignment import AlignmentLoss
from lsm_probe.training.batches import accumulation
from lsm_probe.training.bias_callback import BiasCallback
from lsm_probe.training.callbacks import ShowProgress
from lsm_probe.training.checkpoints import ChecksumCallback
from lsm_probe.training.config import Machine, Stage, TrainConfig
from lsm_probe.training.dataset import TrainingSet, collate
from lsm_probe.training.order import LengthGrouped
from lsm_probe.training.stopping import StopOnSignal
from lsm_probe.training.trainer import LsmTrainer

SHARDING_DEVICES = {"cuda"}
"""Types of the devices that accelerate shards a model over; on CPU it copies the model."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings of one stage's training."""

    config: TrainConfig  # of the run, with its precision resolved
    stage: Stage  # of this stage
    machine: Machine  # of this stage; its passes may be smaller than in the config
    folder: Path  # of the stage's checkpoints and logs
    state: PartialState  # this process, the number of processes, and its device


def is_sharded(machine: Machine, state: PartialState) -> bool:
    """Whether each process holds a part of the model (FSDP2), which accelerate supports only on GPUs."""
    return state.num_processes > 1 and state.device.type in SHARDING_DEVICES and machine.sharding == "fsdp"


def make_trainer(
    run: StageSettings,
    checkpoint: Lsm,
    model: Any,
    train_set: TrainingSet,
    held_out: dict[str, TrainingSet],
    *,
    stop: StopOnSignal,
    progress: ShowProgress,
    bias: BiasCallback | None,
    resumed: bool,
) -> LsmTrainer:
    """Builds the trainer of a stage, which saves the processor of `checkpoint` with the model.

    `held_out` has the held-out samples under `true`, and the controls under `speech` and `instruction`.
    """
    arguments = _arguments(run, checkpoint, evaluates=bool(held_out), resumed=resumed)
    # One process, one device: otherwise the Trainer would use DataParallel over all visible GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if arguments.fsdp and run.config.precision == "bf16":
        # accelerate would also sum gradients in bfloat16, over passes and processes.
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    if bias is not None and arguments.fsdp:
        raise InputError("probe_every needs the whole model in each process: add machine.sharding=ddp")
    aligns = run.stage.strategy == "align"
    if aligns and run.state.num_processes > 1:
        raise InputError("strategy=align trains in one process: start it without torchrun (it is cheap)")
    trainer = LsmTrainer(
        alignment=AlignmentLoss(checkpoint, [train_set, *held_out.values()]) if aligns else None,
        stage=run.stage,
        order=LengthGrouped(train_set.lengths, run.stage.batch_size, run.config.seed),
        stop=stop,
        held_out=held_out,
        model=model,
        args=arguments,
        train_dataset=train_set,
        data_collator=partial(collate, pad_id=checkpoint.tokenizer.pad_token_id or 0),
        processing_class=checkpoint.processor,
    )
    trainer.remove_callback(PrinterCallback)
    for callback in (progress, ChecksumCallback(), *_tensorboard(run), *([] if bias is None else [bias])):
        trainer.add_callback(callback)
    return trainer


def _arguments(run: StageSettings, checkpoint: Lsm, *, evaluates: bool, resumed: bool) -> TrainingArguments:
    config, stage, machine = run.config, run.stage, run.machine
    return TrainingArguments(
        output_dir=str(run.folder),
        per_device_train_batch_size=machine.per_device_batch_size,
        per_device_eval_batch_size=machine.per_device_batch_size,
        gradient_accumulation_steps=accumulation(stage, machine, run.state.num_processes),
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        warmup_steps=stage.warmup,
        lr_scheduler_type="constant_with_warmup" if stage.schedule == "constant" else stage.schedule,
        max_grad_norm=stage.max_grad_norm,
        bf16=run.config.precision == "bf16",
        use_cpu=run.state.device.type == "cpu",
        seed=config.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_steps,
        eval_on_start=evaluates and not resumed,
        save_strategy="steps",
        save_steps=machine.save_steps,
        logging_steps=machine.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # filtering would hide that a run has diverged
        include_num_input_tokens_seen="non_padding",
        report_to=[name for name in machine.report_to if name != "tensorboard"],
        dataloader_num_workers=machine.workers,
        dataloader_pin_memory=run.state.device.type == "cuda",
        remove_unused_columns=False,
        label_names=["shift_labels"],
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        **_sharding(run, checkpoint),
    )


def _sharding(run: StageSettings, checkpoint: Lsm) -> dict[str, Any]:
    """FSDP2 settings with each decoder layer as a unit."""
    if not is_sharded(run.machine, run.state):
        return {}
    context = checkpoint.model.config.encoder_context
    if context in SPEECH_ALONE and not run.config.cache_features:
        # The encoder runs once for each length in a pass. Lengths differ between processes, which would deadlock.
        raise InputError(
            f"a sharded encoder cannot run with encoder_context={context}: add cache_features=true, or "
            "machine.sharding=ddp"
        )
    layers = sorted(set(checkpoint.model._no_split_modules or []))
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "transformer_layer_cls_to_wrap": layers,
            "state_dict_type": "SHARDED_STATE_DICT",
        },
        # Otherwise every device would hold the whole gradient between passes.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def _tensorboard(run: StageSettings) -> list[Any]:
    if "tensorboard" not in run.machine.report_to or not run.state.is_main_process:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(run.folder / "tensorboard")))]
