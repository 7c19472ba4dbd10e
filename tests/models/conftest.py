"""The tiny LSM in every shape: each connector, Whisper's decoder in the tower, speech without the silence after it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lsm_probe
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.checkpoint import Checkpoint

SHAPES: dict[str, dict[str, Any]] = {
    "window_qformer": {},
    "frame_stack": {},
    "conv": {},
    "window_qformer-trimmed": {"encoder_context": "trimmed"},
    "conv-trimmed": {"encoder_context": "trimmed"},
    "linear-decoder": {"decoder_states": 7},
    "frame_stack-decoder": {"decoder_states": 7},
}


@pytest.fixture(scope="session")
def build_shape(
    tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Callable[..., LsmProjectorConfig]
) -> Callable[..., Checkpoint]:
    """`build_shape(name)`: a fresh LSM of that shape, which a test may change."""

    def build(name: str) -> Checkpoint:
        connector = name.split("-")[0]
        projector = tiny_projector() if connector == "window_qformer" else LsmProjectorConfig(connector=connector)
        return lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=projector, **SHAPES[name])

    return build


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, build_shape: Callable[..., Checkpoint]) -> Checkpoint:
    """The LSM in each of its shapes."""
    return build_shape(request.param)
