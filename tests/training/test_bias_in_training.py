"""The bias measured in runs of `lsm_probe.train`."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lsm_probe.errors import InputError, Terminated
from lsm_probe.training.bias_history import BiasHistory
from lsm_probe.training.run import train

LORA = ("strategy=lora", "lora.dropout=0.1", "machine.workers=1")


@pytest.mark.parametrize("settings", [(), LORA])
def test_probing_does_not_change_the_trained_weights(probed_run, uninterrupted, model_sha256, settings) -> None:
    assert model_sha256(probed_run(*settings)) == model_sha256(uninterrupted(*settings))


def test_a_run_writes_bias_values_and_their_figure(probed_run) -> None:
    out = probed_run()
    history = BiasHistory.load(out)
    assert sorted(history.rows) == [0, 3, 6, 9]
    logged = [entry for entry in json.loads((out / "history.json").read_text()) if "bias_eta" in entry]
    assert [entry["bias_D_s"] for entry in logged] == history.to_frame()["D_s"].tolist()
    assert {"bias.png", "bias.svg", "bias.csv"} <= {path.name for path in out.iterdir()}


def test_a_bound_ends_the_run_early_and_the_model_is_saved(
    probed_run, probing, training_config, tmp_path: Path
) -> None:
    frame = BiasHistory.load(probed_run()).to_frame()
    columns = [name for name in frame if name.startswith("eta") or name in ("D_i", "D_s")]
    fallen = next(name for name in columns if frame[name][1] < frame[name][0])
    bound = f"probe_stop_below={{{fallen}: {float(frame[fallen][:2].mean())!r}}}"
    with pytest.warns(UserWarning, match="training was stopped at step 3"):
        report = train(training_config(*probing, bound), tmp_path / "out")
    assert report["stages"][0]["steps"] == 3
    assert fallen in report["stages"][0]["stopped"]
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def test_probing_options_may_change_when_a_run_is_resumed(
    stopped_run, training_config, probing, uninterrupted, model_sha256
):
    out = stopped_run(5)
    train(training_config(*probing), out, resume=True)
    assert sorted(BiasHistory.load(out).rows) == [6, 9]
    assert model_sha256(out) == model_sha256(uninterrupted())


def test_invalid_probing_options_are_refused_before_the_model_is_loaded(training_config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what probe_every measures: stop_below has 'eta_7'"):
        train(training_config("probe_every=auto", "probe_stop_below={eta_7: 1}"), tmp_path / "out")


class SlowModel:
    """Makes the first pass for which `when` holds take ten minutes, and sends SIGTERM half a second after its start."""

    def __init__(self) -> None:
        self.when: Callable[[], bool] = lambda: False
        self.signalled = 0.0

    def __call__(self, module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.Embedding) and self.when():
            self.when = lambda: False
            threading.Timer(0.5, self._send).start()
            time.sleep(600)

    def _send(self) -> None:
        self.signalled = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def slow_model() -> Iterator[SlowModel]:
    slow = SlowModel()
    hook = register_module_forward_pre_hook(slow)
    yield slow
    hook.remove()


def test_sigterm_ends_any_long_work_within_seconds_and_the_run_can_be_resumed(
    training_config, training_folder, probing, uninterrupted, model_sha256, slow_model: SlowModel, tmp_path: Path
) -> None:
    given, out = ("eval_steps=3", f"eval={training_folder / 'eval.jsonl'}"), tmp_path / "out"
    shown: list[tuple[int, str]] = []

    def on_progress(_: str, done: int, total: int | None, note: str = "") -> None:
        shown.append((done, note))

    long_work = {
        "the first probing": (0, "measuring eta"),
        "a step": (2, "loss"),
        "a probing": (6, "measuring eta"),
    }
    for step, note in long_work.values():
        shown.clear()
        slow_model.when = lambda step=step, note=note: shown[-1][0] == step and shown[-1][1].startswith(note)
        with pytest.raises(Terminated, match="before the first of 9" if step == 0 else f"saved at step {step} of 9"):
            train(training_config(*given, *probing), out, resume=step > 0, on_progress=on_progress)
        assert time.monotonic() - slow_model.signalled < 5  # including the save
    train(training_config(*given, *probing), out, resume=True)
    assert model_sha256(out) == model_sha256(uninterrupted(*given))
    assert sorted(BiasHistory.load(out).rows) == [0, 3, 6, 9]
