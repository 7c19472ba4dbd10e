"""What kind of checkpoint a name refers to, and which of several checkpoints gets which part options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, WhisperConfig

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.lookup import load_text_check, look_up
from lsm_probe.models.published import Parts
from lsm_probe.models.resolve import check_parts, resolve, used_parts
from lsm_probe.runner.named_checkpoints import named_checkpoints


@pytest.fixture
def release(tmp_path: Path, tiny_encoder_folder: Path, tiny_llm_folder: Path) -> Path:
    """An Ultravox release that contains only the connector."""
    folder = tmp_path / "ultravox"
    folder.mkdir()
    config = {"model_type": "ultravox", "stack_factor": 4, "hidden_size": 32, "projector_ln_mid": True}
    config |= {"audio_model_id": "somebody/whisper", "text_model_id": "somebody/llm"}
    (folder / "config.json").write_text(json.dumps(config))
    width = WhisperConfig.from_pretrained(tiny_encoder_folder).d_model
    llm_dim = AutoModelForCausalLM.from_pretrained(tiny_llm_folder).config.hidden_size
    shapes = {"ln_pre": (4 * width,), "ln_mid": (16,), "linear_1": (32, 4 * width), "linear_2": (llm_dim, 16)}
    tensors = {f"multi_modal_projector.{name}.weight": torch.ones(shape) / 8 for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def parts(tiny_encoder_folder: Path, tiny_llm_folder: Path) -> dict[str, str]:
    return {"encoder": str(tiny_encoder_folder), "llm": str(tiny_llm_folder)}


@pytest.fixture
def adapter(release: Path, parts: dict[str, str], tmp_path: Path) -> Path:
    """A LoRA on the LLM inside the release."""
    llm = AutoModelForCausalLM.from_pretrained(parts["llm"])
    adapted = get_peft_model(llm, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(release)}))
    return path.parent


@pytest.fixture
def manifest(tmp_path: Path, clip: Callable[..., Path], write: Callable[..., Path]) -> Path:
    row = {"id": "a", "instruction": "Repeat.", "text": "rain", "target": "rain"}
    return write(tmp_path / "clips.jsonl", json.dumps(row | {"audio": str(clip(tmp_path / "a.wav", 1.0))}))


def test_each_name_resolves_to_one_kind_of_checkpoint(
    release: Path, adapter: Path, tiny_lsm_folder: Path, keep_from_hub: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    keep_from_hub("somebody/ultravox", release)
    keep_from_hub("somebody/lsm", tiny_lsm_folder)
    (tmp_path / "a.gguf").touch()
    names = {
        "builtin:llm": "builtin",
        str(adapter): "adapter",
        str(release): "published",
        "somebody/ultravox": "published",
        "somebody/lsm": "hub",
        "my model": "hub",
        "my--model": "hub",
        str(tiny_lsm_folder): "folder",
        str(tmp_path / "a.gguf"): "gguf",
    }
    assert {name: resolve(name).kind for name in names} == names
    assert look_up("somebody/ultravox") == look_up(str(release)) == look_up(str(adapter)) == "speech"
    with pytest.raises(InputError, match="my--model cannot be loaded"):
        lsm_probe.load("my--model")


def test_only_one_format_of_weights_is_downloaded(
    release: Path, keep_from_hub: Callable[[str, Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_from_hub("somebody/ultravox", release)
    there = ["config.json", "model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "x/y.safetensors"]
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(release)

    monkeypatch.setattr("lsm_probe.models.published.loading.list_repo_files", lambda name: there)
    monkeypatch.setattr("lsm_probe.models.published.loading.snapshot_download", download)
    assert resolve("somebody/ultravox", download=True).path == release
    assert [pattern for pattern in asked[0] if not pattern.startswith("*")] == ["model.safetensors"]


def test_part_options_apply_to_checkpoints_without_that_part(
    release: Path,
    adapter: Path,
    parts: dict[str, str],
    tiny_lsm_folder: Path,
    tiny_llm_folder: Path,
    keep_from_hub: Callable[[str, Path], Path],
) -> None:
    keep_from_hub("somebody/base", tiny_llm_folder)
    keep_from_hub("somebody/ultravox", release)
    given = Parts(**parts)
    for name in (str(release), "somebody/ultravox", str(adapter)):
        assert used_parts(name, given) == given
    for name in ("somebody/base", str(tiny_lsm_folder), "builtin:llm"):
        assert used_parts(name, given) == Parts()
    names = [str(release), "somebody/base"]
    loading = {"device": "cpu", "dtype": "float32", **parts}
    loaded = [each.load() for each in named_checkpoints(names, loading)]
    assert [checkpoint.source for checkpoint in loaded] == ["speech", "text"]
    with pytest.raises(InputError, match=r"^--encoder .*: every checkpoint has its own; leave the option out$"):
        check_parts({"somebody/base": None, str(tiny_lsm_folder): None}, given)
    with pytest.raises(InputError, match=r"^--llm x: somebody/base has its own; leave the option out$"):
        lsm_probe.load("somebody/base", llm="x")


def test_part_options_apply_to_an_adapter_on_a_release(
    release: Path, adapter: Path, parts: dict[str, str], manifest: Path, lsm_probe_command: Any, tmp_path: Path
) -> None:
    options = [word for part, place in parts.items() for word in (f"--{part}", place)]
    code, _, err = lsm_probe_command(
        *("attention", "--ckpt", adapter, "--data", manifest, "--out", tmp_path / "out", "--response", "reference"),
        *options,
    )
    assert code == 0, err
    stored = json.loads((tmp_path / "out" / "result.json").read_text())["checkpoint"]
    assert stored["adapter"]["base"]["published"] == "ultravox"
    with pytest.raises(InputError, match=f"{release} does not hold its encoder"):
        lsm_probe.load(adapter, device="cpu")


def test_data_validate_accepts_part_options(
    release: Path, parts: dict[str, str], manifest: Path, lsm_probe_command: Any
) -> None:
    options = [word for part, place in parts.items() for word in (f"--{part}", place)]
    code, out, err = lsm_probe_command("data", "validate", manifest, "--ckpt", release, *options)
    assert (code, "samples usable, 0 not" in out) == (0, True), err
    code, _, err = lsm_probe_command("data", "validate", manifest, *options)
    assert code == 2
    assert "--encoder needs --ckpt" in err
    with pytest.raises(InputError, match="control token"):
        load_text_check(str(release), parts=Parts(**parts))("Repeat </s>", "rain", None)


def test_an_import_from_parts_is_saved_in_float32(
    release: Path,
    parts: dict[str, str],
    keep_from_hub: Callable[[str, Path], Path],
    lsm_probe_command: Any,
    tmp_path: Path,
) -> None:
    keep_from_hub("somebody/ultravox", release)
    options = [word for part, place in parts.items() for word in (f"--{part}", place)]
    code, _, err = lsm_probe_command("import", "somebody/ultravox", "--out", tmp_path / "lsm", *options)
    assert code == 0, err
    assert json.loads((tmp_path / "lsm" / "config.json").read_text())["dtype"] == "float32"
    code, _, err = lsm_probe_command("import", "nobody/nothing", "--out", tmp_path / "lsm")
    assert (code, "holds files already" in err) == (2, True)
