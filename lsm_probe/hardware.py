"""Which dtypes a device computes with, and with what precision."""

from __future__ import annotations

import platform
import timeit
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch

from lsm_probe.errors import InputError


def computes_natively(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has instructions for matrix products in `dtype`; if not, they are emulated and far slower.

    A limit set by ONEDNN_MAX_CPU_ISA=AVX2 is respected.

    Args:
        dtype: of the matrix products.
        device: if no GPU is present (a run that is only estimated), a recent GPU is assumed.
    """
    if dtype == torch.float32:
        return True
    if device.type == "cuda":
        here = torch.cuda.is_available()
        return dtype != torch.bfloat16 or not here or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return _computes(dtype, device)
    # torch has no public names for these.
    onednn = torch.ops.mkldnn
    if dtype == torch.float16:
        return bool(onednn._is_mkldnn_fp16_supported())
    # On x86, oneDNN accepts bfloat16 from AVX-512 on, but emulates it on CPUs without AVX512-BF16.
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(onednn._is_mkldnn_bf16_supported()) and (not x86 or in_hardware)


def warn_if_emulated(dtype: torch.dtype, device: torch.device, option: str) -> None:
    """Warns if `dtype` is emulated; the warning says how much slower than float32 a matrix product is, measured now.

    `option` is the option that chose the dtype, such as `--dtype bfloat16`.

    Raises:
        InputError: the device cannot compute with it at all.
    """
    if computes_natively(dtype, device):
        return
    name = str(dtype).removeprefix("torch.")
    if not _computes(dtype, device):
        raise InputError(f"{option}: this {device.type.upper()} cannot compute with {name}; use auto instead")
    factor = _slowdown(dtype, device)
    warnings.warn(
        f"{option}: this {device.type.upper()} has no {name} instructions; a matrix product takes "
        f"{factor:.{0 if factor >= 10 else 1}f} times as long as in float32 (measured now). Use auto instead, which "
        "selects a dtype that this device computes natively",
        stacklevel=3,
    )


@cache
def _slowdown(dtype: torch.dtype, device: torch.device) -> float:
    return _seconds(dtype, device) / _seconds(torch.float32, device)


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of the fastest of three products of `[32, 512]` and `[512, 512]`, which take milliseconds in float32."""
    left, right = (torch.ones(rows, 512, dtype=dtype, device=device) for rows in (32, 512))
    # `item` waits for the device.
    return min(timeit.repeat(lambda: (left @ right).sum().item(), number=1, repeat=3))


def _computes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has matrix products in `dtype` at all."""
    try:
        one = torch.ones(1, 1, dtype=dtype, device=device)
        (one @ one).item()
    except (RuntimeError, TypeError):  # CUDA raises RuntimeError, MPS TypeError
        return False
    return True


@cache
def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest dtype in which a device can compute sums: float64, or float32 on a device without float64 (MPS)."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return torch.float32
    return torch.float64


@contextmanager
def exact_float32() -> Iterator[None]:
    """Computes float32 products and convolutions in the block without rounding them to TF32 or bfloat16.

    By default GPUs round the float32 inputs of convolutions to TF32, which has 10 bits for the fraction.
    """
    with ExitStack() as stack:
        for get, put, exact in _float32_settings():
            if (before := get()) != exact:
                put(exact)
                stack.callback(put, before)
        yield


def _float32_settings() -> list[tuple[Callable[[], Any], Callable[[Any], Any], Any]]:
    """For each setting of float32 precision: functions that read and set it, and its value for no rounding."""
    backends: Any = torch.backends
    allow = partial(getattr, backends.cudnn, "allow_tf32"), partial(setattr, backends.cudnn, "allow_tf32"), False
    precision = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    try:
        allow[0](), precision[0]()
        newer = getattr(backends, "fp32_precision", "none") != "none"  # since torch 2.9
    except RuntimeError:  # the newer names are in use, and torch does not accept both
        newer = True
    if not newer:
        return [allow, precision]
    parts = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul)
    name = "fp32_precision"
    return [(partial(getattr, part, name), partial(setattr, part, name), "ieee") for part in parts]
