"""A saved tokenizer gives the same tokens as before."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import lsm_probe
from lsm_probe.models import LsmProjectorConfig


@pytest.fixture(params=[True, False, None], ids=["legacy", "legacy-false", "legacy-missing"])
def llama_folder(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_llm_folder: Path, save_sentencepiece: Callable[..., None]
) -> Path:
    """An LLM with a Llama's `tokenizer.model`, which puts a space before the text after special tokens."""
    folder = tmp_path / "llm"
    shutil.copytree(tiny_llm_folder, folder, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    save_sentencepiece(folder, request.param)
    return folder


def test_an_lsm_with_a_llama_tokenizer_has_the_same_prompt_after_loading(
    tmp_path: Path, llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    connector = LsmProjectorConfig(connector="frame_stack")
    built = lsm_probe.build_lsm(tiny_encoder_folder, llama_folder, projector=connector, template="vicuna")
    prompt = built.encode("Continue writing the text.", "She sells sea shells.")
    built.save(tmp_path / "lsm")
    loaded = lsm_probe.load(tmp_path / "lsm", device="cpu")
    assert loaded.encode("Continue writing the text.", "She sells sea shells.") == prompt


def test_a_text_llm_with_a_llama_tokenizer_has_the_same_prompt_after_loading(
    tmp_path: Path, llama_folder: Path
) -> None:
    loaded = lsm_probe.load(llama_folder, device="cpu", template="vicuna")
    prompt = loaded.encode("Continue writing the text.", "She sells sea shells.")
    loaded.save(tmp_path / "saved")
    saved = lsm_probe.load(tmp_path / "saved", device="cpu", template="vicuna")
    assert saved.encode("Continue writing the text.", "She sells sea shells.") == prompt
