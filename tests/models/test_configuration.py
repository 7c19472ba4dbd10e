"""Configurations: default sizes of connectors, invalid settings, and folders saved by earlier versions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import WhisperConfig

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models import LsmConfig, LsmProjectorConfig
from lsm_probe.models.connectors import CONNECTORS


@pytest.mark.parametrize(
    ("connector", "window", "hidden_size"),
    [
        ("window_qformer", 17, 768),
        ("frame_stack", 5, 2048),
        ("conv", None, 512),
        ("linear", None, None),
        ("swiglu_stack", 8, 2048),
        ("transformer", 8, 384),
    ],
)
def test_each_connector_has_its_own_default_sizes(connector: str, window: int | None, hidden_size: int | None) -> None:
    config = LsmProjectorConfig(connector=connector)
    assert (config.window, config.hidden_size) == (window, hidden_size)
    given = LsmProjectorConfig(connector=connector, window=17, hidden_size=768)
    assert (given.window, given.hidden_size) == (17, 768)


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("sizes", [{}, {"window": 17, "hidden_size": 768}, {"window": 3, "hidden_size": 32}])
def test_a_saved_configuration_is_loaded_unchanged(connector: str, sizes: dict[str, int], tmp_path: Path) -> None:
    """A size equal to another connector's default is kept as well."""
    projector = LsmProjectorConfig(connector=connector, **sizes)
    config = LsmConfig(projector_config=projector, encoder_context="trimmed")
    config.save_pretrained(tmp_path)
    loaded = LsmConfig.from_pretrained(tmp_path)
    for name in ("connector", "window", "hidden_size"):
        assert getattr(loaded.projector_config, name) == getattr(projector, name)
    assert (loaded.encoder_context, loaded.decoder_states) == ("trimmed", None)
    assert loaded.to_json_string() == config.to_json_string()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"connector": "pooling"},
            ["'pooling'", "frame_stack, linear, swiglu_stack, transformer"],
        ),
        ({"window": 0}, ["window_qformer", "window", "0"]),
        ({"connector": "frame_stack", "window": -5}, ["frame_stack", "window", "-5"]),
        ({"window": 2.5}, ["window", "2.5"]),
        ({"connector": "conv", "hidden_size": 0}, ["conv", "hidden_size", "0"]),
        ({"num_queries": 0}, ["num_queries", "0"]),
    ],
)
def test_an_unusable_connector_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        LsmProjectorConfig(**settings)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder_context": "half"}, ["'half'", "full, trimmed"]),
        ({"decoder_input": "drawn", "decoder_states": 8}, ["'drawn'", "start_tokens, learned"]),
        ({"decoder_input": "learned"}, ["'learned'", "decoder_states"]),
        ({"decoder_states": 0}, ["decoder_states", "0"]),
        ({"decoder_states": 31}, ["decoder_states", "31", "30 positions"]),
        ({"decoder_states": 8, "encoder_context": "trimmed"}, ["trimmed", "decoder_states"]),
    ],
)
def test_an_unusable_audio_tower_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        LsmConfig(audio_config=WhisperConfig(max_target_positions=30), **settings)
    assert all(word in str(error.value) for word in words), error.value


@pytest.fixture
def copy(tiny_lsm_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_lsm_folder, tmp_path / "lsm")


def test_a_folder_with_an_unusable_configuration_is_named(copy: Path) -> None:
    path = copy / "config.json"
    content = json.loads(path.read_text())
    content["projector_config"]["connector"] = "pooling"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lsm cannot be loaded: connector 'pooling' is unknown; choose one of: "):
        lsm_probe.load(copy, device="cpu")


def test_folders_saved_by_earlier_versions_load_with_the_old_defaults(copy: Path) -> None:
    for file in ("config.json", "processor_config.json"):
        content = json.loads((copy / file).read_text())
        for name in ("decoder_states", "encoder_context"):
            content.pop(name, None)
        (copy / file).write_text(json.dumps(content))
    checkpoint = lsm_probe.load(copy, device="cpu")
    config: Any = checkpoint.model.config
    assert (config.decoder_states, config.encoder_context) == (None, "full")
    assert (config.projector_config.connector, config.projector_config.window) == ("window_qformer", 17)
    assert checkpoint.processor.decoder_states is None
