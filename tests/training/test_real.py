"""The real embedded models: they learn from speech, and the result can be probed."""

from pathlib import Path

import pytest

import lsm_probe
from lsm_probe.data.manifest import manifest_writer
from lsm_probe.data.spread import spread_over_utterances
from lsm_probe.training.bias_history import BiasHistory
from lsm_probe.training.config import read_config
from lsm_probe.training.run import train


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Two of the built-in utterances with their transcripts as targets."""
    path = tmp_path / "spoken.jsonl"
    with manifest_writer(path) as write:
        for sample in lsm_probe.read_manifest("builtin:probe")[:2]:
            write(sample.model_copy(update={"instruction": "Transcribe the speech.", "target": sample.text}))
    return path


@pytest.mark.real
def test_bias_of_a_real_model_is_measured_during_training(tmp_path: Path, builtin) -> None:
    samples = lsm_probe.read_manifest("builtin:commands")
    with manifest_writer(tmp_path / "train.jsonl") as write:
        write(samples[0])
    settings = ["model.start=builtin:vanilla_asr", f"train={tmp_path / 'train.jsonl'}", "eval=[]", "max_steps=2"]
    watching = [
        "batch_size=1",
        "machine.per_device_batch_size=1",
        "probe_every=2",
        "probe_limit=2",
        "machine.report_to=[]",
    ]
    train(read_config("mini/lora", [*settings, *watching]), tmp_path / "run")
    frame = BiasHistory.load(tmp_path / "run").to_frame()
    assert frame["step"].tolist() == [0, 2]
    found = lsm_probe.attention(
        builtin("builtin:vanilla_asr"), spread_over_utterances(samples, 2), response="reference"
    )
    assert frame["eta_6"][0] == pytest.approx(found.eta_groups()[5]["eta"], abs=1e-4)
    assert (frame["D_s"][0], frame["D_i"][0]) != (frame["D_s"][1], frame["D_i"][1])


@pytest.mark.real
def test_a_few_steps_lower_the_loss_and_the_checkpoint_can_be_probed(spoken: Path, tmp_path: Path) -> None:
    settings = [f"train={spoken}", f"eval={spoken}", "batch_size=2", "max_steps=12", "warmup=0", "eval_steps=12"]
    config = read_config("mini/commands", [*settings, "schedule=constant", "machine.per_device_batch_size=2"])
    report = train(config, tmp_path / "run")
    found = report["stages"][0]["evaluation"]
    assert found["eval_loss"] < 2.0  # 4 or more untrained
    result = lsm_probe.attention(
        lsm_probe.load(report["model"]), lsm_probe.read_manifest("builtin:probe")[:2], max_new_tokens=8
    )
    assert result.self_check["worst"] < result.self_check["worst_bound"]
    assert result.to_dict()["checkpoint"]["checksums"] == "verified"
