"""Run by `torchrun`: trains as `lsm-probe train` does on several GPUs, but on the CPU.

Arguments: the config, the output folder, `key=value`. Each process writes `rank-N.json`: `moved`, the devices that the
whole model was moved to, and `weights` and `AdamW`, the bytes that the process held after each step.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor

from lsm_probe.distributed import init_distributed
from lsm_probe.models import LsmForConditionalGeneration
from lsm_probe.training import assembly
from lsm_probe.training.callbacks import ShowProgress
from lsm_probe.training.config import read_config
from lsm_probe.training.run import train


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors that this process holds."""
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes for tensor in tensors)


def main() -> None:
    config, out, *overrides = sys.argv[1:]
    begin, move, end_step = PartialState.__init__, LsmForConditionalGeneration.to, ShowProgress.on_step_end
    found: dict[str, list[Any]] = {"moved": [], "weights": [], "AdamW": []}

    def begin_as_gpu(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    def record_move(self: Any, *args: Any, **kwargs: Any) -> Any:
        found["moved"].append(str(args or kwargs))
        return move(self, *args, **kwargs)

    def record_bytes(self: Any, *args: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        found["weights"].append(held_bytes(model.parameters()))
        found["AdamW"].append(held_bytes(moment for kept in optimizer.state.values() for moment in kept.values()))
        end_step(self, *args, model=model, optimizer=optimizer, **kwargs)

    with (
        patch.object(PartialState, "__init__", begin_as_gpu),
        patch.object(assembly, "SHARDING_DEVICES", {"cpu"}),
        patch.object(LsmForConditionalGeneration, "to", record_move),
        patch.object(ShowProgress, "on_step_end", record_bytes),
    ):
        train(read_config(config, overrides), out)
    rank = init_distributed(cpu=True).process_index
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
