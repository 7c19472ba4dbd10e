"""Training on a simulated GPU: the weights of the CPU."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

import lsm_probe
from lsm_probe.training.config import read_config
from lsm_probe.training.run import train


@pytest.fixture
def config_file(tiny_encoder_folder, tiny_llm_folder, samples, tmp_path):
    """Two steps of four samples."""
    lsm_probe.write_manifest(samples, tmp_path / "train.jsonl")
    connector = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    parts = {"encoder": str(tiny_encoder_folder), "llm": str(tiny_llm_folder)}
    settings = {
        "model": {**parts, "encoder_context": "trimmed", "connector": connector},
        "train": str(tmp_path / "train.jsonl"),
        "batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "precision": "float32",
        "machine": {"per_device_batch_size": 4, "save_steps": 5, "log_steps": 1, "report_to": []},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "config.yaml"


def test_two_steps_end_with_the_weights_of_the_cpu(config_file, tmp_path, simulated_device):
    train(read_config(config_file, ["machine.device=cpu"]), tmp_path / "cpu")
    with simulated_device():
        report = train(read_config(config_file, []), tmp_path / "gpu")
    assert report["stages"][0]["device"] == "cuda"
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("cpu", "gpu"))
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=1e-6)
