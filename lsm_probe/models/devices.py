"""Devices and dtype of a model, on one device or several.

On several devices, as many layers as fit are on the GPUs and the rest is in the CPU's memory. Accelerate's hooks move
the inputs of a layer to the layer's device. The weights of a layer that does not fit are on the first GPU only while it
runs; otherwise they are on the meta device, which has shapes but no numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory, get_max_memory
from torch import Tensor, nn
from transformers import PreTrainedModel

from lsm_probe.distributed import is_distributed, local_device
from lsm_probe.errors import InputError
from lsm_probe.hardware import computes_natively, warn_if_emulated

SPREAD = "spread"
"""The value of `--device` for all GPUs."""
_FREE_FOR_A_PASS = 0.1
"""Share of a GPU's memory that weights, and tensors kept between passes, leave free for a pass."""


def resolve_device(device: str) -> torch.device:
    """The device that [`load`] names `cpu`, `cuda`, `cuda:1`, `mps`, ..., `auto` or `spread`.

    `auto` and `spread` are a CUDA GPU, or else the CPU. Under `torchrun`, `auto` and `cuda` are the GPU of the process.

    Raises:
        InputError: it is unknown, not here, or cannot be used; or this machine has fewer GPUs than processes.
    """
    if device in ("auto", SPREAD):
        return local_device()
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise _unusable(device, "torch knows no such device") from error
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if resolved.type not in ("cpu", getattr(here, "type", None)):
        raise _unusable(device, f"this machine has {'only the CPU' if here is None else f'cpu and {here.type}'}")
    if resolved.type == "cuda" and resolved.index is None:
        resolved = local_device()
    try:
        torch.empty(0, device=resolved)
    except RuntimeError as error:
        raise _unusable(device, str(error).splitlines()[0]) from error
    return resolved


def _unusable(device: str, reason: str) -> InputError:
    return InputError(f"--device {device} cannot be used here ({reason}): try --device auto")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that [`load`] names `float32`, `bfloat16`, `float16` or `auto`, for a model on this device.

    Raises:
        InputError: the name is unknown.

    Warns:
        UserWarning: the dtype is emulated on the device.
    """
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if computes_natively(torch.bfloat16, device) else torch.float16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise InputError(f"--dtype {dtype!r} is unknown; choose one of: auto, {', '.join(known)}")
    warn_if_emulated(known[dtype], device, f"--dtype {dtype}")
    return known[dtype]


def dispatch_over_gpus(model: PreTrainedModel) -> None:
    """Distributes the layers of a model on the CPU evenly over all GPUs; those that do not fit stay there.

    Each GPU keeps room for the attention products of its layers, and a tenth of its memory for a pass.

    Raises:
        InputError: this process is one of several, which would all use the same GPUs.
    """
    if is_distributed():
        raise InputError(
            "--device spread places one model on all GPUs: start a single process, or leave the option out"
        )
    if not torch.cuda.is_available():
        return
    whole = sorted({*(model._no_split_modules or ()), *_with_own_parameters(model)})
    share = (1 - _FREE_FOR_A_PASS) / (1 + _kept_bytes(model) / sum(p.nbytes for p in model.parameters()))
    free = {gpu: int(free * share) for gpu, free in get_max_memory().items() if isinstance(gpu, int)}
    memory = get_balanced_memory(model, max_memory=free, no_split_module_classes=whole)
    memory |= {"cpu": sys.maxsize}  # the whole model is on the CPU at this point
    device_map = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    dispatch_model(model, device_map, skip_keys=model._skip_keys_device_placement)


def _with_own_parameters(model: nn.Module) -> set[str]:
    """Classes of modules with both parameters and submodules, such as a Q-Former with its queries. Accelerate moves
    modules only, so it would leave these parameters behind if it split such a module."""

    def has_both(module: nn.Module) -> bool:
        own = next(module.parameters(recurse=False), None)
        return own is not None and next(module.children(), None) is not None

    return {type(module).__name__ for module in model.modules() if has_both(module)}


def _kept_bytes(model: PreTrainedModel) -> int:
    """Bytes that norm-based attention stores: the products of all heads' output projections with each other, float32.

    The products are symmetric: half of those inside a group of heads are needed, and each group is paired with half of
    the other groups.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):  # no attention, or different numbers of heads per layer, which cannot be measured
        return 0
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    own = heads // groups
    pairs = groups * (own * (own + 1) // 2 + groups // 2 * own**2)
    return int(config.num_hidden_layers * 4 * pairs * width**2)


def has_room(device: torch.device) -> bool:
    """Whether results may stay in a device's memory between passes: at least a tenth of the memory is free."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    # torch keeps freed memory.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused > _FREE_FOR_A_PASS * total


def input_device(model: PreTrainedModel) -> torch.device:
    """The device that a model takes its inputs on: that of its token embeddings."""
    embedding: Any = model.get_input_embeddings()
    if is_offloaded(embedding):
        return torch.device(embedding._hf_hook.execution_device)
    return next(embedding.parameters()).device


def is_offloaded(module: nn.Module) -> bool:
    """Whether weights of a module are on a device only while the module runs."""
    return any(parameter.is_meta for parameter in module.parameters())


def read_numbers(numbers: Sequence[Tensor]) -> Tensor:
    """Converts tensors of one number each, on any devices, to `[numbers]` float64 on the CPU.

    Reading a number waits for its device; this function waits only once per device.
    """
    found = torch.empty(len(numbers), dtype=torch.float64)
    for device in {number.device for number in numbers}:
        rows = [i for i, number in enumerate(numbers) if number.device == device]
        widest = reduce(torch.promote_types, {numbers[i].dtype for i in rows})
        found[rows] = torch.stack([numbers[i].detach().to(widest) for i in rows]).cpu().double()
    return found
