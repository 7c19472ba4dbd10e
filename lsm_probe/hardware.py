"""Which dtypes a device has instructions for."""

from __future__ import annotations

import platform
import timeit
import warnings
from functools import cache

import torch


def computes_natively(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has instructions for matrix products in `dtype`; elsewhere they are emulated, many times slower.

    A limit set by ONEDNN_MAX_CPU_ISA=AVX2 is respected.

    Args:
        dtype: of the matrix products.
        device: a GPU that is not there, of a run that is only estimated, is taken for a recent one.
    """
    if dtype == torch.float32:
        return True
    if device.type == "cuda":
        here = torch.cuda.is_available()
        return dtype != torch.bfloat16 or not here or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    # torch has no public names for these.
    onednn = torch.ops.mkldnn
    if dtype == torch.float16:
        return bool(onednn._is_mkldnn_fp16_supported())
    # On x86 oneDNN takes bfloat16 from AVX-512 on, and emulates it up to AVX512-BF16.
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(onednn._is_mkldnn_bf16_supported()) and (not x86 or in_hardware)


def warn_if_emulated(dtype: torch.dtype, device: torch.device, option: str) -> None:
    """Warns where `dtype` is emulated, with how much slower a matrix product is than in float32, measured now.

    `option` is what chose the dtype, such as `--dtype bfloat16`.
    """
    if computes_natively(dtype, device):
        return
    name = str(dtype).removeprefix("torch.")
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
    """The fastest of three products of `[32, 512]` and `[512, 512]`: milliseconds in float32."""
    left, right = (torch.ones(rows, 512, dtype=dtype, device=device) for rows in (32, 512))
    # `item` waits for the device.
    return min(timeit.repeat(lambda: (left @ right).sum().item(), number=1, repeat=3))
