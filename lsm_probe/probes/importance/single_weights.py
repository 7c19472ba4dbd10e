"""Sums over samples of one float32 number per weight, kept on the weights' own devices if they fit there.

A sum on a device needs no copy for each sample: it is copied to the CPU once, at the end of the run. Sums that do not
fit are kept on the CPU or in files, which needs a copy for each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lsm_probe.distributed import all_reduce_sum, rank_suffix
from lsm_probe.errors import InputError
from lsm_probe.instruments.gradients import Parameter


class SingleWeights:
    """The sums of single weights: `sums` maps the name of a parameter to a tensor of its shape.

    Args:
        parameters: the parameters whose weights are summed.
        scratch: a folder for the CPU's sums as memory-mapped files; None keeps them in memory.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, parameters: Sequence[Parameter], scratch: Path | None):
        self.parameters, self.scratch = parameters, scratch
        # One tensor per device for all its sums, which can be copied at once.
        self._on_devices = [(fitting, _zeros_together(fitting)) for fitting in _fitting(parameters).values()]
        self.sums = {p.name: part for fitting, flat in self._on_devices for p, part in _parts(fitting, flat)}
        for parameter in parameters:
            if parameter.name not in self.sums:
                self.sums[parameter.name] = _zeros(parameter, scratch)

    def add(self, parameter: Parameter, values: Tensor) -> None:
        """Adds one number to the sum of each weight of a parameter."""
        kept = self.sums[parameter.name]
        kept += values.to(kept.device)

    def gather(self) -> None:
        """Copies all sums to the CPU and sums over processes; every process must call it once."""
        for fitting, flat in self._on_devices:
            if self.scratch is None:
                self.sums |= {p.name: part for p, part in _parts(fitting, flat.cpu())}
            else:
                for parameter in fitting:
                    self.sums[parameter.name] = _zeros(parameter, self.scratch).copy_(self.sums[parameter.name])
        self._on_devices = []
        all_reduce_sum([self.sums[parameter.name] for parameter in self.parameters])


def _fitting(parameters: Sequence[Parameter]) -> dict[torch.device, list[Parameter]]:
    """The parameters whose sums fit on their device together with a pass; CPU parameters are not included."""
    fitting: dict[torch.device, list[Parameter]] = {}
    room: dict[torch.device, int] = {}
    for parameter in parameters:
        device = parameter.tensor.device
        if device not in room:
            # The other half of the free memory is for a pass and its gradients.
            room[device] = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0
        size = 4 * parameter.tensor.numel()
        if size <= room[device]:
            room[device] -= size
            fitting.setdefault(device, []).append(parameter)
    return fitting


def _zeros_together(parameters: Sequence[Parameter]) -> Tensor:
    return torch.zeros(sum(p.tensor.numel() for p in parameters), device=parameters[0].tensor.device)


def _parts(parameters: Sequence[Parameter], flat: Tensor) -> list[tuple[Parameter, Tensor]]:
    parts = flat.split([p.tensor.numel() for p in parameters])
    return [(p, part.view(p.tensor.shape)) for p, part in zip(parameters, parts, strict=True)]


def _zeros(parameter: Parameter, scratch: Path | None) -> Tensor:
    if scratch is None:
        return torch.zeros(parameter.tensor.shape)
    path = scratch / f"{parameter.name}{rank_suffix()}.f32"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--scratch {scratch} cannot be written to: {error.strerror}") from error
    flat = torch.from_file(str(path), shared=True, size=parameter.tensor.numel(), dtype=torch.float32)
    return flat.zero_().view(parameter.tensor.shape)
