"""The bias callback of our own training runs: interruptible, and shown in the progress."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from lsm_probe.errors import InputError
from lsm_probe.training.bias_callback import BiasCallback
from lsm_probe.training.callbacks import ShowProgress
from lsm_probe.training.config import TrainConfig
from lsm_probe.training.stopping import StopOnSignal


def bias_callback(config: TrainConfig, stop: StopOnSignal, progress: ShowProgress) -> BiasCallback | None:
    """The callback that a config asks for; None if the config asks for no probing.

    Raises:
        InputError: the samples to probe cannot be used, or a bound has an unknown name.
    """
    if config.probe_every is None:
        return None
    try:
        return _StageBiasCallback(
            stop,
            progress,
            samples=config.probe_samples,
            every=None if config.probe_every == "auto" else config.probe_every,
            limit=config.probe_limit,
            base=config.probe_base,
            stop_below=config.probe_stop_below,
            seed=config.seed,
        )
    except InputError as error:
        raise InputError(f"what probe_every measures: {error}") from error


class _StageBiasCallback(BiasCallback):
    def __init__(self, stop: StopOnSignal, progress: ShowProgress, **options: Any):
        super().__init__(**options)
        self._stop, self._progress = stop, progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._progress.show_probing(state)
        super().on_train_begin(args, state, control, model, **kwargs)

    def interruptible(self) -> AbstractContextManager[None]:
        return self._stop.interruptible()

    def _probe(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None:
        if not self._stop.is_stopping:
            self._progress.show_probing(state)
            super()._probe(args, state, control, model)
