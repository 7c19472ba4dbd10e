"""What the tests of releases share: a sample that speaks, Whisper's states by transformers, and how one is written."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

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
