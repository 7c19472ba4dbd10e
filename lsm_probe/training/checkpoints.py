"""Checkpoints of a run, and resuming from the last complete one."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import load_sharded_checkpoint

from lsm_probe.checksums import is_complete, verify, write_checksums
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.files import disk_is_full, replacing

_PREFIX = "checkpoint-"
_KEPT = 2
_DATA = "data.json"
_FULL = 2**20  # bytes left
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream", "write failed")


class ChecksumCallback(TrainerCallback):
    """Writes `checksums.json` as the last file of a checkpoint: a checkpoint without it is incomplete.

    Only then are checkpoints older than the last two removed, ordered by their steps. The Trainer orders by the times
    of folders, so after a copy or a clock change it may remove the checkpoint that it has just written.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        # Otherwise the Trainer would log and save as often as the interrupted run did, ignoring new settings.
        state.compute_steps(args, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        _wait_for_all()
        if state.is_world_process_zero:
            run = Path(args.output_dir or ".")
            folder = run / f"{_PREFIX}{state.global_step}"
            # An unneeded pickle: config.yaml has all settings.
            (folder / "training_args.bin").unlink(missing_ok=True)
            write_checksums(folder)
            for old in _by_step(run)[:-_KEPT]:
                shutil.rmtree(old)
        _wait_for_all()


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; None if there is none.

    No code in its files is run, except for sharded runs: torch reads the `.metadata` of such a checkpoint as a pickle.
    Checksums detect damage but not malicious changes, so resume only from sharded checkpoints of your own.

    Raises:
        InputError: a file differs from what the run wrote, or is not a run's file; names the file.
    """
    complete = [checkpoint for checkpoint in _by_step(folder) if is_complete(checkpoint)]
    if not complete:
        return None
    remedy = f"delete {complete[-1]}, and --resume continues from the checkpoint before it"
    try:
        verify(complete[-1])
    except InputError as error:
        what, _, _ = str(error).rpartition(": ")  # its advice is about models, not about runs
        raise InputError(f"{what}: {remedy}") from error
    for path in sorted(complete[-1].rglob("*")):
        try:
            _check_readable(path)
        except (UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} was not written by a training run: {remedy}") from error
    return complete[-1]


def is_saved(folder: Path, step: int) -> bool:
    """Whether a run's checkpoint of this step is complete."""
    return is_complete(folder / f"{_PREFIX}{step}")


def remove_unfinished(folder: Path) -> None:
    """Deletes the incomplete checkpoint of a killed or failed save."""
    for checkpoint in _by_step(folder):
        if not is_complete(checkpoint):
            shutil.rmtree(checkpoint)


@contextmanager
def disk_full_as_oserror(folder: Path) -> Iterator[None]:
    """Raises `OSError(ENOSPC)` if safetensors or torch find the disk full, and removes the incomplete checkpoint."""
    try:
        yield
    except (SafetensorError, RuntimeError, OSError) as error:
        # torch only reports an unexpected position in the file.
        torch_failed = isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER)
        full = "No space left" in str(error) or disk_is_full(error)
        if not full and not (torch_failed and shutil.disk_usage(folder).free < _FULL):
            raise
        remove_unfinished(folder)
        raise OSError(errno.ENOSPC, "the disk is full", str(folder)) from error


def restore(trainer: Any, checkpoint: Path) -> None:
    """Restores the trainer's model and state from a checkpoint of a run that is not sharded."""
    adapter, single = checkpoint / "adapter_model.safetensors", checkpoint / "model.safetensors"
    if adapter.exists():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(trainer.model, load_file(adapter))
    elif single.exists():
        trainer.model.load_state_dict(load_file(single), strict=False)  # tied weights are saved once
    else:
        load_sharded_checkpoint(trainer.model, str(checkpoint), strict=False)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def check_same_data(folder: Path, samples: Sequence[Sample], *, resumed: bool) -> None:
    """Records the data that a run is trained on; for a resumed run, checks that the data is the same.

    Raises:
        InputError: the samples differ from those that the run was started with.
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.model_dump_json().encode() + b"\n")
    data = {"samples": len(samples), "sha256": digest.hexdigest()}
    path = folder / _DATA
    if not resumed:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(data) + "\n", encoding="utf-8")
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: choose another --out") from error
    if begun != data:
        raise InputError(
            f"{folder} was started with other samples than the manifests hold now: restore the manifests, or choose "
            "another --out"
        )


def _check_readable(path: Path) -> None:
    """Raises if a file of a checkpoint would not load. Tensors are not read into memory, and no code in it is run."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    elif path.suffix in (".pt", ".pth"):
        with safe_globals():  # numpy arrays in the state of its generator
            torch.load(path, map_location="meta", weights_only=True, mmap=True)
    elif path.suffix in (".bin", ".pkl"):
        raise ValueError("a pickle")
    elif path.name == "trainer_state.json" and _step_in(path) != step_of(path.parent):
        raise ValueError("of another step")


def _step_in(state: Path) -> int:
    return int(TrainerState.load_from_json(str(state)).global_step)


def _by_step(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def _wait_for_all() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
