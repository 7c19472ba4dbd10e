"""SIGTERM and Ctrl-C during training: the run ends within seconds, with a checkpoint of its last whole step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from lsm_probe.errors import Terminated


class StepInterrupted(BaseException):
    """A signal interrupted a step or an evaluation."""


class StopOnSignal(TrainerCallback):
    """Ends training at SIGTERM (a scheduler's notice, `kill`) or Ctrl-C.

    A single process leaves the running step or evaluation, which can take minutes on a slow machine. The weights are
    then those after the last whole step, and this step is saved. Several processes must stop at the same step, so they
    finish it; they only handle SIGTERM.

    It handles signals within its `with` block, and only in a program's main thread. In other threads, signals keep
    their previous handlers.

    """

    def __init__(self, *, distributed: bool) -> None:
        self.signal: int | None = None  # the signal that was received
        self.is_stopping = False  # whether all processes end the run with this step
        self._distributed = distributed
        self._may_interrupt = False
        self._before: dict[int, Any] = {}
        self._restore_state: Callable[[], None] = lambda: None

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM,) if self._distributed else (signal.SIGTERM, signal.SIGINT)
            self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside the block, a signal raises [`StepInterrupted`] at once, if there is a single process.

        Outside such blocks, where the optimizer updates weights or a checkpoint is saved, the signal waits for the end
        of the step.
        """
        self._may_interrupt = not self._distributed
        try:
            self._interrupt_if_signalled()
            yield
        finally:
            self._may_interrupt = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._keep_state(state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._keep_state(state)
        self.is_stopping = self._any_rank_signalled()
        if self.is_stopping:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # it may take longer than the time that is left

    def save_last_step(self, trainer: Any, is_saved: Callable[[], bool]) -> None:
        """After an interrupted step, saves the state at the end of the last whole step, unless `is_saved` already."""
        self._restore_state()
        if trainer.state.global_step and not is_saved():
            # The Trainer has no public name for this; its own callback for SIGTERM calls it too.
            trainer._save_checkpoint(trainer.model, trial=None)
            trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    def stopped_at(self, step: int, total: int) -> BaseException:
        """The exception that ends the run, for the caller to raise."""
        by, kind = (
            ("stopped by SIGTERM", Terminated) if self.signal == signal.SIGTERM else ("interrupted", KeyboardInterrupt)
        )
        if step == 0:
            return kind(f"{by} before the first of {total} steps: run the same command with --resume to start again")
        return kind(f"{by} and saved at step {step} of {total}: run the same command with --resume to continue")

    def _on_signal(self, number: int, _: Any) -> None:
        if self.signal == signal.SIGINT == number:  # a second Ctrl-C does not wait for the save
            raise KeyboardInterrupt
        self.signal = number
        self._interrupt_if_signalled()

    def _interrupt_if_signalled(self) -> None:
        if self.signal is not None and self._may_interrupt:
            self._may_interrupt = False
            raise StepInterrupted

    def _keep_state(self, state: TrainerState) -> None:
        """Stores what a step changes before it ends, in case the step is interrupted."""
        tokens, cpu_generator = state.num_input_tokens_seen, torch.get_rng_state()
        gpu_generator = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

        def restore() -> None:
            state.num_input_tokens_seen = tokens
            torch.set_rng_state(cpu_generator)
            if gpu_generator is not None:
                torch.cuda.set_rng_state(gpu_generator)

        self._restore_state = restore

    def _any_rank_signalled(self) -> bool:
        """Whether any process got the signal: it arrives at different steps, but all must stop at the same one."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.signal is not None
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        asked = torch.tensor(self.signal or 0, device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        self.signal = int(asked) or None
        return self.signal is not None


def notice_signals_in_backward(model: nn.Module) -> None:
    """Lets Python handle signals between the layers of a backward pass, which is otherwise one call of compiled
    code."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.register_forward_hook(_call_python_in_backward)


def leave_sigterm_to_trainer(worker: int) -> None:
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


def _call_python_in_backward(layer: nn.Module, inputs: Any, output: Any) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    if isinstance(hidden, Tensor) and hidden.requires_grad:
        hidden.register_hook(lambda gradient: None)
