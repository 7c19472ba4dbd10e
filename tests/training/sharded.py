"""Run by `torchrun` with two processes: trains a sharded LSM, saves it, loads it into another, and continues training
both.

Arguments: the LSM's folder, the manifest, the output folder. Writes `checkpoint/` (torch.distributed.checkpoint, after
one step), `on.safetensors` (all weights after two steps) and `report.json`.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

import lsm_probe
from lsm_probe.training.config import Stage
from lsm_probe.training.dataset import TrainingSet, collate
from lsm_probe.training.parameters import parameter_groups, prepare_model
from lsm_probe.training.samples import read_samples

BATCH = 4
STAGE = Stage(learning_rate=1e-3, connector_learning_rate=1e-2)


def prepared(folder: Path, *, sharded: bool) -> tuple[Any, torch.optim.Optimizer]:
    """An LSM with a frozen encoder, and an optimizer with two rates."""
    model = prepare_model(lsm_probe.load(folder, device="cpu", dtype="float32").model, STAGE)
    if sharded:
        for module in list(model.modules()):
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module)
        fully_shard(model)
    decayed = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    # With such a large eps, gradients of pure rounding error change nothing; with the default they make full steps.
    return model.eval(), torch.optim.AdamW(parameter_groups(model, decayed, STAGE), lr=STAGE.learning_rate, eps=1e-3)


def batch(folder: Path, manifest: Path, number: int, part: slice = slice(None)) -> dict[str, torch.Tensor]:
    """One process's part of a step's samples."""
    checkpoint = lsm_probe.load(folder, device="cpu", dtype="float32")
    samples = read_samples([manifest], tasks=None, limit=None, on_error="fail")
    items = TrainingSet(samples, checkpoint)
    wanted = range(BATCH * number, BATCH * (number + 1))[part]
    made = partial(collate, pad_id=checkpoint.tokenizer.pad_token_id or 0)([items[i] for i in wanted])
    made.pop("index")
    return made


def step(
    model: Any, optimizer: torch.optim.Optimizer, inputs: dict[str, torch.Tensor], *, tokens: int, parts: int
) -> None:
    """One update; the gradients of `parts` processes are averaged."""
    optimizer.zero_grad()
    loss = model(**inputs, use_cache=False, num_items_in_batch=tokens).loss
    (loss * parts).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert torch.nn.utils.get_total_norm(gradients).isfinite()  # as the Trainer is asked before each update
    optimizer.step()


def tokens_of(inputs: dict[str, torch.Tensor]) -> int:
    return int((inputs["shift_labels"] != -100).sum())


def main() -> None:
    folder, manifest, out = map(Path, sys.argv[1:])
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    def train_on(model: Any, optimizer: torch.optim.Optimizer, number: int) -> None:
        own = batch(folder, manifest, number, slice(rank, None, world))
        tokens = torch.tensor(tokens_of(own))
        dist.all_reduce(tokens)
        step(model, optimizer, own, tokens=int(tokens), parts=world)

    model, optimizer = prepared(folder, sharded=True)
    train_on(model, optimizer, 0)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=out / "checkpoint")
    train_on(model, optimizer, 1)

    other, other_optimizer = prepared(folder, sharded=True)
    weights, state = get_state_dict(other, other_optimizer)
    loaded = {"model": weights, "optimizer": state}
    dcp.load(loaded, checkpoint_id=out / "checkpoint")
    set_state_dict(other, other_optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    train_on(other, other_optimizer, 1)

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    first, second = (get_model_state_dict(m, options=whole) for m in (model, other))
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    if rank == 0:
        save_file({name: tensor.clone() for name, tensor in first.items()}, out / "on.safetensors")
        report = {
            "largest_difference": max(float((first[name] - second[name]).abs().max()) for name in first),
            "share": held / sum(parameter.numel() for parameter in model.parameters()),
            "groups": len(optimizer.param_groups),
        }
        (out / "report.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
