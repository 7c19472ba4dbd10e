"""A complete training run with FSDP in two processes on the CPU: memory of each, and the same results as one
process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lsm_probe.training.estimate import estimate

SCRIPT = Path(__file__).with_name("fsdp_on_cpu.py")
# The encoder of this model cannot be sharded (`encoder_context=trimmed`), and encodes before the training.
SETTINGS = ("cache_features=true", "model.connector.dropout=0", "max_steps=3", "machine.save_steps=2")

TWO = ("machine.devices=2", "machine.per_device_batch_size=2")


@pytest.fixture(scope="module")
def sharded_run(training_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fsdp") / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSM_PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        arguments = [*torchrun, SCRIPT, training_folder / "tiny.yaml", out, *SETTINGS, *TWO]
        ended = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=200)
    assert not ended.returncode, ended.stderr
    return out


def ranks(run: Path) -> list[dict[str, Any]]:
    return [json.loads((run / f"rank-{i}.json").read_text()) for i in (0, 1)]


def losses(run: Path) -> list[float]:
    entries = json.loads((run / "history.json").read_text())
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_no_process_moves_the_whole_model_to_its_device(sharded_run: Path) -> None:
    assert [rank["moved"] for rank in ranks(sharded_run)] == [[], []]


def test_memory_of_each_process_equals_the_dry_run_estimate(sharded_run: Path, training_config) -> None:
    [stage] = estimate(training_config(*SETTINGS, *TWO, "machine.device=auto")).stages
    for rank in ranks(sharded_run):
        for what in ("weights", "AdamW"):
            assert rank[what] == [pytest.approx(stage.memory[what], rel=0.01)] * 3, what


def test_two_processes_train_like_one(sharded_run: Path, uninterrupted, tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("LSM_PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
    alone = uninterrupted(*SETTINGS)
    assert losses(sharded_run) == pytest.approx(losses(alone), abs=1e-6)
    expected = load_file(alone / "model" / "model.safetensors")
    trained = load_file(sharded_run / "model" / "model.safetensors")
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (trained[name] - tensor).abs().max() <= 1e-5, name


def test_the_checkpoint_is_sharded(sharded_run: Path) -> None:
    assert (sharded_run / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()
