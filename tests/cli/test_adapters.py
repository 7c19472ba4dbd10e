"""Adapters (PEFT) given to the commands, and `--base`."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

COMMAND = ("attention", "--response", "reference")


@pytest.fixture
def adapter(tiny_llm_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "somebody/not-here"}))
    return path.parent


def test_an_adapter_is_compared_with_its_base(run, adapter, tiny_llm_folder, tmp_path):
    code, _, stderr = run(adapter, tiny_llm_folder, options=("--base", tiny_llm_folder))
    assert code == 0, stderr
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*/result.json"))]
    by_name = {result["checkpoint"]["name"]: result["checkpoint"] for result in results}
    assert by_name.keys() == {str(adapter), str(tiny_llm_folder)}
    stored = by_name[str(adapter)]["adapter"]
    assert stored["peft_type"] == "LORA"
    assert stored["base"]["weights_sha256"] == by_name[str(tiny_llm_folder)]["weights_sha256"]


@pytest.mark.parametrize("command", ["timeline", "attention", "text-ability", "evaluate"])
def test_a_base_option_without_an_adapter_is_refused(refusal, tiny_llm_folder, manifest, command):
    options = ("--task", f"librispeech-clean={manifest}") if command == "evaluate" else ("--data", manifest)
    line = refusal(command, "--ckpt", tiny_llm_folder, *options, "--base", tiny_llm_folder)
    assert "is not an adapter (a folder with adapter_config.json)" in line


def test_a_missing_base_is_refused(refusal, adapter, manifest):
    line = refusal(*COMMAND, "--ckpt", adapter, "--data", manifest, "--base", "/nowhere/base")
    assert "there is no folder" in line


def test_diagnose_merges_an_adapter_into_the_base_llm(lsm_probe_command, adapter, tiny_llm_folder, manifest, tmp_path):
    options = ("--base", tiny_llm_folder, "--quick", "--max-new-tokens", 4, "--out", tmp_path / "out")
    code, _, stderr = lsm_probe_command("diagnose", "--ckpt", adapter, "--data", manifest, *options)
    assert code == 0, stderr
    stored = [json.loads(path.read_text())["checkpoint"] for path in (tmp_path / "out").glob("attention/*/result.json")]
    assert {"adapter" in checkpoint for checkpoint in stored} == {True, False}
