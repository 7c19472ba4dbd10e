"""Progress of a training run."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from lsm_probe.progress import OnProgress


class ShowProgress(TrainerCallback):
    """Reports the step, the loss and the speed.

    On a slow machine a step or an evaluation takes minutes, so progress within it is reported too.
    """

    def __init__(self, name: str, on_progress: OnProgress):
        self.name = name
        self.on_progress = on_progress
        self._loss = ""
        self._since = time.monotonic()
        self._spent = 0.0
        self._first_tokens = 0
        self._passes = 0
        self._evaluated = 0
        # Tokens of prompts and responses over all processes, without padding; time without evaluating and saving.
        self.tokens_per_second = 0.0

    def show_preparing(self, what: str, step: int = 0) -> None:
        """Shows the current preparation before the first step, which may take minutes; only on rank 0."""
        self.on_progress(self.name, step, None, what)

    def show_probing(self, state: TrainerState) -> None:
        self._show(state, "measuring eta, D_i and D_s")

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._first_tokens = int(state.num_input_tokens_seen)
        self._since, self._spent = time.monotonic(), 0.0
        self._show(state, "first step")

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._passes += 1
        self._show(state, f"pass {self._passes} of {args.gradient_accumulation_steps} of the next step")

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._evaluated += 1
        self._show(state, f"held-out loss: batch {self._evaluated}")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        self._spent, self._since = self._spent + now - self._since, now
        self.tokens_per_second = (state.num_input_tokens_seen - self._first_tokens) / self._spent
        self._passes = 0
        self._show(state, f"{self._loss}{self.tokens_per_second:,.0f} tok/s")

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}, "
        if logs and "bias_eta" in logs:
            self._since = time.monotonic()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = time.monotonic()
        self._evaluated = 0

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = time.monotonic()

    def _show(self, state: TrainerState, note: str) -> None:
        if state.is_world_process_zero:
            self.on_progress(self.name, state.global_step, state.max_steps or None, note)
