"""Where a model runs and in which dtype: from the names that `--device` and `--dtype` take to torch's objects."""

from __future__ import annotations

import torch

from lsm_probe.distributed import local_device
from lsm_probe.errors import InputError
from lsm_probe.hardware import computes_natively, warn_if_emulated
from lsm_probe.models.device_map import SPREAD


def resolve_device(device: str) -> torch.device:
    if device in ("auto", SPREAD):
        return local_device()
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used here ({reason}): try --device auto") from error
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of a name as [`load`] takes it.

    Args:
        dtype: `float32`, `bfloat16`, `float16` or `auto`.
        device: where the model runs.

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
