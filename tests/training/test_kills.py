"""Training processes that are killed: a single one, and two that train together."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lsm_probe.training.bias_history import BiasHistory

PASSES_OF_2 = "machine.per_device_batch_size=2"
WITHOUT_DROPOUT = "model.connector.dropout=0.0"  # each process has its own random numbers


@pytest.fixture
def setup(kills, training_folder):
    """`setup("key=value", ..., processes=1)`: how the tiny model is trained."""
    return lambda *changes, processes=1: kills.Setup(training_folder / "tiny.yaml", changes, processes)


def test_kills_at_random_times_do_not_change_the_trained_model(
    kills, launcher, setup, uninterrupted, model_sha256, tmp_path
) -> None:
    outcome = kills.trial(
        launcher, setup(), tmp_path, kills=4, seed=1, expected=model_sha256(uninterrupted()), seconds=2.5
    )
    assert outcome["kills"] == 4  # the first of them comes when a checkpoint is begun
    assert not outcome["failed"]
    assert not outcome["hashes_differ"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_by_a_signal_saves_and_can_be_resumed(
    kills, launcher, setup, uninterrupted, model_sha256, train_command, tmp_path, workers
) -> None:
    out = tmp_path / "out"
    victim = setup(f"machine.workers={workers}").start(launcher, out)
    victim.wait(lambda: (out / "checkpoint-2" / "checksums.json").exists())
    if not workers:  # the second process of the two that write there
        assert train_command("--out", out, "--resume")[0] == 2
    victim.send(signal.SIGTERM)
    assert victim.wait() == 143
    lines = victim.log.read_text().strip().splitlines()
    assert "stopped by SIGTERM and saved at step" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    step = int(lines[-1].split("saved at step ")[1].split()[0])
    assert not kills.unfinished(out)
    victim = setup(f"machine.workers={workers}").start(launcher, out)
    assert victim.wait() == 0, victim.log.read_text()
    assert model_sha256(out) == model_sha256(uninterrupted())
    steps = [entry["step"] for entry in json.loads((out / "history.json").read_text()) if "loss" in entry]
    assert steps == list(range(1, 10))
    assert 2 <= step < 9


@pytest.fixture(scope="session")
def two_ranks(training_folder: Path, probing, tmp_path_factory) -> Path:
    """The folder of a run under torchrun: 2 processes x 2 samples, measured every third step."""
    out = tmp_path_factory.mktemp("torchrun") / "out"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "lsm_probe"]
    settings = [training_folder / "tiny.yaml", PASSES_OF_2, WITHOUT_DROPOUT, *probing]
    command = [*torchrun, "train", *settings, f"--out={out}"]
    subprocess.run([sys.executable, *map(str, command)], check=True, timeout=200, capture_output=True)
    return out


def losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((out / "history.json").read_text()) if "loss" in entry]


def largest_difference(one: Path, other: Path) -> float:
    """The largest difference between two runs' weights, without the biases of keys.

    Those do not change attention: their gradients are only rounding errors, and AdamW turns them into full steps.
    """
    first, second = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first if not name.endswith("key.bias"))


def test_two_processes_train_like_one(two_ranks, uninterrupted) -> None:
    alone = uninterrupted(WITHOUT_DROPOUT)
    assert losses(two_ranks) == pytest.approx(losses(alone), abs=1e-5)
    assert largest_difference(two_ranks, alone) < 1e-5
    assert {path.name for path in two_ranks.iterdir() if path.is_dir()} == {"checkpoint-8", "checkpoint-9", "model"}
    assert {path.name for path in (two_ranks / "checkpoint-9").glob("rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_two_processes_give_the_bias_values_of_one(two_ranks, probed_run) -> None:
    together, alone = BiasHistory.load(two_ranks), BiasHistory.load(probed_run(WITHOUT_DROPOUT))
    assert together.setup == alone.setup
    assert together.responses == alone.responses
    assert sorted(together.rows) == sorted(alone.rows) == [0, 3, 6, 9]
    for step, row in alone.rows.items():
        numbers = {key: value for key, value in row.items() if key not in ("seconds", "epoch")}
        assert {key: together.rows[step][key] for key in numbers} == pytest.approx(numbers, abs=1e-4)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_resume_together(kills, launcher, setup, two_ranks, model_sha256, tmp_path, number) -> None:
    together = setup(PASSES_OF_2, WITHOUT_DROPOUT, processes=2)
    out = tmp_path / "out"
    victim = together.start(launcher, out)
    victim.wait(lambda: (out / "checkpoint-6" / "checksums.json").exists())
    assert not victim.ended, victim.log.read_text()
    victim.send(number)
    victim.wait()
    assert set(victim.codes.values()) == {-signal.SIGKILL if number == signal.SIGKILL else 143}, victim.log.read_text()
    again = together.start(launcher, out)
    again.wait()
    assert set(again.codes.values()) == {0}, again.log.read_text()
    assert model_sha256(out) == model_sha256(two_ranks)
