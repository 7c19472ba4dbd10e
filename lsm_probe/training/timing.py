"""How fast this machine trains, before a run's size is chosen."""

from __future__ import annotations

from time import perf_counter

import torch
from accelerate import PartialState

from lsm_probe.training.config import TrainConfig
from lsm_probe.training.dataset import TrainingSet, collate
from lsm_probe.training.parameters import prepare_model
from lsm_probe.training.samples import read_samples
from lsm_probe.training.start import start_model

_SAMPLES = 4


def seconds_per_sample(config: TrainConfig) -> float:
    """Seconds that a sample takes in a pass forward and back, with those it is batched with.

    The first stage is timed, on its first four samples, in the second of two passes; without the optimizer's update,
    reading and saving.

    Raises:
        InputError: config, data or model cannot be used.
    """
    device = PartialState().device
    config = config.with_precision_for(device)
    stage = config.resolved_stages()[0]
    checkpoint = start_model(config.model, None, config.seed)
    model = prepare_model(checkpoint.model.to(device), stage).train()
    chosen = TrainingSet(read_samples(stage.train, limit=_SAMPLES, tasks=stage.tasks, on_error="fail"), checkpoint)
    batch = collate([chosen[i] for i in range(len(chosen))], pad_id=checkpoint.tokenizer.pad_token_id or 0)
    inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "index"}
    for _ in range(2):
        begun = perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        loss.item()  # waits for the device
    return (perf_counter() - begun) / len(chosen)
