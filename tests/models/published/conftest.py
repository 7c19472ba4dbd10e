"""Fixtures for tests of releases: a spoken sample, its mel features, and functions that write a release."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor, WhisperModel

import lsm_probe

SAMPLES = 37_501
"""About 2.3 s, no whole number of mel frames: 235 of them, 118 states."""


@pytest.fixture
def sample(tmp_path: Path) -> lsm_probe.Sample:
    """Noise of 2.3 s, with an instruction."""
    wave = np.random.default_rng(7).normal(0, 0.1, SAMPLES).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", wave, 16_000, subtype="FLOAT")
    return lsm_probe.Sample(
        id="noise", instruction="Write down what the speaker says.", audio=str(tmp_path / "noise.wav"), text="words"
    )


@pytest.fixture
def mel(sample: lsm_probe.Sample) -> Tensor:
    """Its log-mel features of 30 s, `[1, 80, 3000]`."""
    wave, rate = soundfile.read(str(sample.audio), dtype="float32")
    features: Tensor = WhisperFeatureExtractor()(wave, sampling_rate=rate, return_tensors="pt").input_features
    return features


@pytest.fixture(scope="session")
def write_release() -> Callable[[Path, Mapping[str, Any], Mapping[str, Tensor]], Path]:
    """`write_release(folder, config, tensors)`: `config.json` and two files of weights; returns the folder."""

    def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        names = sorted(tensors)
        for i, half in enumerate((names[::2], names[1::2])):
            torch.save({name: tensors[name].clone() for name in half}, folder / f"pytorch_model-0000{i}.bin")
        return folder

    return write


@pytest.fixture
def write_blsp_model(
    tmp_path: Path,
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    write_release: Callable[..., Path],
    make_tokenizer: Callable[[], PreTrainedTokenizerFast],
) -> Callable[..., Path]:
    """`write_blsp_model(connector, settings, change)`: a release of the class `BlspModel`; returns the folder.

    `connector`: tensors of its connector; `settings`: of its `config.json`; `change`: changes the tensors in place.
    """

    def write(
        connector: Mapping[str, Tensor], settings: Mapping[str, Any], change: Callable[[dict[str, Tensor]], Any]
    ) -> Path:
        llm = LlamaForCausalLM.from_pretrained(tiny_llm_folder)
        encoder = WhisperModel.from_pretrained(tiny_encoder_folder).encoder
        tensors = {f"whisper_model.{name}": tensor for name, tensor in encoder.state_dict().items()}
        tensors |= {f"llama_model.{name}": tensor for name, tensor in llm.state_dict().items()}
        tensors["llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors |= connector
        change(tensors)
        config = {
            "architectures": ["BlspModel"],
            "llama_config": llm.config.to_dict(),
            "whisper_config": WhisperConfig.from_pretrained(tiny_encoder_folder).to_dict(),
        }
        folder = write_release(tmp_path / "release", config | dict(settings), tensors)
        make_tokenizer().save_pretrained(folder)
        WhisperFeatureExtractor().save_pretrained(folder)
        return folder

    return write
