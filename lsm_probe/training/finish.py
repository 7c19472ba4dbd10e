"""From the end of training to a checkpoint that loads without us: adapters merged, shards put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import TrainerState
from transformers.trainer_utils import load_sharded_checkpoint

from lsm_probe.models.checkpoint_kinds import Lsm


def restore(trainer: Any, checkpoint: Path) -> None:
    """Gives the trainer's model and state what they had at a checkpoint of a run that is not sharded."""
    adapter = checkpoint / "adapter_model.safetensors"
    if adapter.exists():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(trainer.model, load_file(adapter))
    else:
        single = checkpoint / "model.safetensors"
        if single.exists():
            trainer.model.load_state_dict(load_file(single), strict=False)  # tied weights are saved once
        else:
            load_sharded_checkpoint(trainer.model, str(checkpoint), strict=False)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def save_model(trainer: Any, checkpoint: Lsm, folder: Path) -> None:
    """Writes the trained LSM, in float32; every process calls this, the main one writes."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()  # in every process: of shards each has a part
    state = trainer.accelerator.get_state_dict(model)
    if not trainer.is_world_process_zero():
        return
    for tied in getattr(model, "all_tied_weights_keys", {}):
        state.pop(tied, None)  # gathered from shards it is a copy, which safetensors would write a second time
    checkpoint.model = model
    checkpoint.save(folder, state_dict=state)
