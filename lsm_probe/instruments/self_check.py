"""The self-check: if alpha, v and W_O do not reproduce the attention's output, its numbers are refused.

Errors stay on the device during a pass and are checked once at its end, so that no layer waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsm_probe.errors import InputError, SampleFault


def error_bounds(dtype: torch.dtype) -> tuple[float, float]:
    """Largest median and largest single-row relative error that the self-check accepts.

    In half precision the bounds follow the measured rounding of attention modules.
    """
    return (1e-5, 1e-5) if dtype in (torch.float32, torch.float64) else (5e-3, 2e-2)


def error_summary(errors: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Median and worst of the self-check's relative errors, of any shapes, with their bounds for the model's dtype."""
    flat = torch.cat([e.flatten() for e in errors])
    median_bound, worst_bound = error_bounds(dtype)
    found = {"median": flat.median().item(), "worst": flat.max().item()}
    return found | {"median_bound": median_bound, "worst_bound": worst_bound}


class SelfCheck:
    """The relative errors of the layers of one pass: collected on the device, checked together on the host.

    Args:
        row_mask: `[batch, rows]`, on the CPU, False for padding.
    """

    def __init__(self, row_mask: Tensor):
        self.row_mask = row_mask
        self._layers: list[tuple[str, tuple[float, float]]] = []
        self._found: list[Tensor] = []

    def add(self, place: str, expected: Tensor, actual: Tensor, bounds: tuple[float, float]) -> None:
        """Adds a layer's relative errors `|expected - actual| / |actual|`, one for each row.

        Args:
            place: name of the attention; the start of an error message.
            expected: the output from alpha, v and W_O, `[batch, rows, d]`.
            actual: the attention's own output at these rows, `[batch, rows, d]`.
            bounds: as in [`error_bounds`].
        """
        actual = actual.to(expected.dtype)
        # An all-zero output must not give 0 / 0: the error is 0 if zeros were expected, and very large otherwise.
        errors = (expected - actual).norm(dim=-1) / actual.norm(dim=-1).clamp_min(torch.finfo(expected.dtype).tiny)
        self._layers.append((place, bounds))
        self._found.append(torch.cat([errors.flatten(), actual.abs().amax()[None]]))

    def judge(self) -> Tensor:
        """All errors, `[layers, batch, rows]` on the CPU, in the order in which they were added, if within bounds.

        Raises:
            InputError: alpha, v and W_O do not reproduce the output of a layer; the first such layer is named.
            SampleFault: the output is not finite, or half precision may round too coarsely for this sample.
        """
        if not self._found:
            return torch.empty(0, *self.row_mask.shape)
        device = self._found[0].device
        found = torch.stack([errors.to(device) for errors in self._found]).cpu()
        errors, largest = found[:, :-1].unflatten(1, self.row_mask.shape), found[:, -1].tolist()
        for (place, bounds), of_layer, output in zip(self._layers, errors, largest, strict=True):
            _judge_layer(place, of_layer[self.row_mask], output, bounds)
        return errors


def _judge_layer(place: str, errors: Tensor, largest: float, bounds: tuple[float, float]) -> None:
    if not math.isfinite(largest):
        raise SampleFault(f"{place}: its output is not finite (NaN in the weights, or float16 overflows)")
    median_bound, worst_bound = bounds
    # Written so that NaN is also refused.
    if not (errors.median() <= median_bound and errors.max() <= worst_bound):
        # In half precision a single sample may round too coarsely.
        half = median_bound > error_bounds(torch.float32)[0]
        raise (SampleFault if half else InputError)(
            f"{place}: alpha, v and W_O do not reproduce its output (relative error: median {errors.median():.1e}, "
            f"worst {errors.max():.1e}; bounds {median_bound:.0e} and {worst_bound:.0e}), so something else stands "
            "between them, such as a gate or a norm"
            + (", or half precision rounds too coarsely: try --dtype float32" if half else "")
        )
