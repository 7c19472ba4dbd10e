"""SIGTERM and Ctrl-C during a step, an evaluation, or a backward pass."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lsm_probe.errors import Terminated
from lsm_probe.training.run import train
from lsm_probe.training.stopping import leave_sigterm_to_trainer, notice_signals_in_backward

IN_FOUR_PASSES = "machine.per_device_batch_size=1"
EVALUATED = "eval_steps=3"
KINDS = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}


def signal_when(number: int, step: int, note: str) -> Callable[..., None]:
    """An `on_progress` that sends this process a signal once, after the given step and when the given note is shown."""
    sent = []

    def on_progress(_: str, done: int, total: int | None, shown: str = "") -> None:
        if done == step and shown.startswith(note) and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    return on_progress


@pytest.mark.parametrize("number", KINDS)
def test_a_signal_interrupts_a_step_and_the_resumed_run_is_unchanged(
    training_config, training_folder: Path, uninterrupted, model_sha256, tmp_path: Path, number: int
) -> None:
    given = (IN_FOUR_PASSES, EVALUATED, f"eval={training_folder / 'eval.jsonl'}")
    out = tmp_path / "out"
    # Every second step is saved, and step 3 is not one of them.
    in_a_step = signal_when(number, 3, "pass 2 of 4")
    with pytest.raises(KINDS[number], match=r"saved at step 3 of 9: run the same command with --resume to continue"):
        train(training_config(*given), out, on_progress=in_a_step)
    in_an_evaluation = signal_when(number, 6, "held-out loss: batch 2")
    with pytest.raises(KINDS[number], match=r"saved at step 6 of 9"):
        train(training_config(*given), out, resume=True, on_progress=in_an_evaluation)
    train(training_config(*given), out, resume=True)
    assert model_sha256(out) == model_sha256(uninterrupted(*given))


def test_a_signal_before_the_first_step_saves_nothing(training_config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Terminated, match=r"before the first of 9 steps: .* --resume to start again"):
        train(training_config(IN_FOUR_PASSES), out, on_progress=signal_when(signal.SIGTERM, 0, "pass 1 of 4"))
    assert not list(out.glob("checkpoint-*"))
    assert train(training_config(IN_FOUR_PASSES), out, resume=True)["stages"][0]["steps"] == 9


def test_progress_before_the_first_step_is_shown(
    training_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSM_PROBE_CACHE", str(tmp_path / "cache"))  # nothing is encoded yet
    shown: list[tuple[int, str]] = []
    train(
        training_config("max_steps=1", "cache_features=true"),
        tmp_path / "out",
        on_progress=lambda name, done, total, note="": shown.append((done, note or name)),
    )
    first = list(dict.fromkeys(note for done, note in shown if not done))
    assert first == ["loading the model", "reading the data", "setting up", "first step"]
    assert "encoding speech" in [note for _, note in shown]


def test_a_backward_pass_is_interrupted_between_two_layers() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(20))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                hidden = layer(hidden)
            return hidden

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    model = Layers()
    notice_signals_in_backward(model)
    loss = model(torch.ones(2048, 512)).sum()
    before = signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, 0.02)  # of the half second or more that the whole pass takes
    try:
        with pytest.raises(KeyboardInterrupt):
            loss.backward()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert model.layers[0].weight.grad is None


def test_workers_start_on_systems_without_signal_masks(monkeypatch) -> None:
    """Windows has neither function, macOS lacks the second."""
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    for name in ("sigwaitinfo", "pthread_sigmask"):
        monkeypatch.delattr(signal, name)
        leave_sigterm_to_trainer(0)
    assert not started
