"""What watches a run: the order to stop, progress."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState

OnProgress = Callable[..., None]


class StopOnTerm(TrainerCallback):
    """At SIGTERM (a scheduler's notice, `kill`) saves after the step that is running, and stops.

    It listens within its `with` block. Only a program's main thread can: in another, SIGTERM does what it did before.

    Attributes:
        stopped: whether that has happened.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: Any = None
        self._listens = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopOnTerm:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked_any():
            self.stopped = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # it may take longer than the time that is left

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def _asked_any(self) -> bool:
        """The signal reaches processes at different steps; all must stop at the same one."""
        if not (dist.is_available() and dist.is_initialized()):
            return self._asked
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        asked = torch.tensor(int(self._asked), device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked)


def outlive_sigterm(worker: int) -> None:
    """Lets a process that reads data live on when SIGTERM comes to all processes of a run, as Slurm and systemd send
    it: the training process still needs it for the step that is running, and ends it itself. (On Linux; elsewhere a
    signal does not tell who sent it.)"""
    if not hasattr(signal, "sigwaitinfo"):
        return
    trainer = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_with_trainer() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=end_with_trainer, daemon=True).start()


class ShowProgress(TrainerCallback):
    """Hands on the step, the loss, and the speed.

    Attributes:
        tokens_per_second: of prompts and responses over all processes, since training began or went on; padding, and
            the time of evaluating and saving, left out.
    """

    def __init__(self, name: str, on_progress: OnProgress):
        self.name = name
        self.on_progress = on_progress
        self._loss = ""
        self._since = time.monotonic()
        self._spent = 0.0
        self._first_tokens = 0
        self.tokens_per_second = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._first_tokens = int(state.num_input_tokens_seen)
        self._since, self._spent = time.monotonic(), 0.0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        self._spent, self._since = self._spent + now - self._since, now
        self.tokens_per_second = (state.num_input_tokens_seen - self._first_tokens) / self._spent
        if state.is_world_process_zero:
            note = f"{self._loss}{self.tokens_per_second:,.0f} tok/s"
            self.on_progress(self.name, state.global_step, state.max_steps, note)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}, "

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = time.monotonic()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = time.monotonic()
