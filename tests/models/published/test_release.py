"""Files of releases: their tokenizers, and which weight files belong to them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.llm_tokenizers import read_tokenizer
from lsm_probe.models.published import find_system


@pytest.mark.parametrize("legacy", [True, False, None])
def test_spaces_after_special_tokens_are_as_in_tokenizer_json(
    tmp_path: Path, save_sentencepiece: Callable[..., None], legacy: bool | None
) -> None:
    save_sentencepiece(tmp_path, legacy)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = read_tokenizer(tmp_path)
    # One more space before each text, even if the text begins with a space.
    pieces = {"q": ["▁", "q"], " q": ["▁", "▁", "q"], "<s>q": ["<s>", "▁", "q"], "<s> q": ["<s>", "▁", "▁", "q"]}
    for text, expected in pieces.items():
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [token.replace("<0x71>", "q") for token in tokenizer.convert_ids_to_tokens(found)] == expected
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text("{}")
    saved = read_tokenizer(tmp_path / "saved")
    for text in pieces:
        assert saved(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"has no tokenizer: add the tokenizer\.json or tokenizer\.model"):
        read_tokenizer(tmp_path)


def test_a_text_llm_with_a_second_copy_of_its_weights_loads(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """As Mistral publishes its models: shards, and `consolidated.safetensors` with other tensor names."""
    folder = shutil.copytree(tiny_llm_folder, tmp_path / "llm")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_llm_folder).save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    save_file({f"other.{name}": tensor for name, tensor in weights.items()}, folder / "consolidated.safetensors")
    loaded = lsm_probe.load(folder, device="cpu", dtype="float32")
    assert all(torch.equal(loaded.model.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("file", ["model.pt", "other.pth"])
def test_unrelated_files_are_not_recognised_as_a_release(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"junk")
    (tmp_path / "model.safetensors.index.json").write_text("junk")
    assert find_system(tmp_path) is find_system(tmp_path / file) is None
