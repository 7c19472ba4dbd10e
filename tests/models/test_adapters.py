"""Adapters (PEFT): merged into their base exactly, with all of their tensors, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models import LsmForConditionalGeneration
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.lookup import load_text_check, look_up

IDS = torch.tensor([[5, 9, 200, 31, 7, 44]])
KINDS: dict[str, peft.PeftConfig] = {
    "lora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias="none"),
    "rslora": LoraConfig(r=2, target_modules="all-linear", use_rslora=True),
    "dora": LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "new head": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    "new tokens": LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 9]),
    "loha": peft.LoHaConfig(r=2, target_modules=["q_proj"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": peft.OFTConfig(oft_block_size=4, r=0, target_modules=["q_proj"]),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def save_adapter(folder: Path, model: Any, config: peft.PeftConfig, base: str) -> Path:
    """Saves an adapter whose weights differ from their initial values."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def adapter(tiny_llm_folder: Path, tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    return save_adapter(tmp_path / "adapter", model, LoraConfig(r=2, target_modules=["q_proj"]), str(tiny_llm_folder))


def refusal(folder: Path, *names: str, **options: Any) -> None:
    with pytest.raises(InputError) as error:
        lsm_probe.load(folder, **options)
    for name in names:
        assert name in str(error.value), str(error.value)


class TestMerging:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_text_llm_gives_the_logits_of_the_unmerged_model(
        self, tiny_llm_folder: Path, tmp_path: Path, kind: str
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
        plain = model(input_ids=IDS).logits
        folder = save_adapter(tmp_path / "adapter", model, KINDS[kind], str(tiny_llm_folder))
        unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llm_folder), folder).eval()
        checkpoint = lsm_probe.load(folder, device="cpu")
        with torch.no_grad():
            expected = unmerged(input_ids=IDS).logits
            found = checkpoint.model(input_ids=IDS).logits
        assert (expected - found).abs().max() < 1e-5
        assert (expected - plain).abs().max() > 1e-2
        assert checkpoint.name == str(folder)
        assert all(parameter.requires_grad for parameter in checkpoint.model.parameters())
        assert not any("lora" in name or "base_layer" in name for name in checkpoint.model.state_dict())

    @pytest.mark.parametrize("trained_on", ["lsm", "llm"])
    def test_an_lsm_accepts_an_adapter_for_itself_or_for_its_llm(
        self, tiny_lsm_folder: Path, tmp_path: Path, trained_on: str, waveform: Callable[..., Any]
    ) -> None:
        targets = r"(.*language_model.*|model.*)\.q_proj"
        lsm: Any = LsmForConditionalGeneration.from_pretrained(tiny_lsm_folder)
        trained = lsm if trained_on == "lsm" else lsm.language_model
        folder = save_adapter(
            tmp_path / "adapter", trained, LoraConfig(r=2, target_modules=targets), str(tiny_lsm_folder)
        )
        reference: Any = LsmForConditionalGeneration.from_pretrained(tiny_lsm_folder)
        if trained_on == "lsm":
            reference = PeftModel.from_pretrained(reference, folder).base_model.model
        else:
            reference.language_model = PeftModel.from_pretrained(reference.language_model, folder).base_model.model
        checkpoint = lsm_probe.load(folder, device="cpu")
        prompt = checkpoint.encode("Repeat.", waveform(1))
        embedded = checkpoint.embed([prompt])[0][None]
        with torch.no_grad():
            expected = reference.eval().language_model(inputs_embeds=embedded).logits
            found = checkpoint.llm(inputs_embeds=embedded).logits
            plain = lsm_probe.load(tiny_lsm_folder, device="cpu").llm(inputs_embeds=embedded).logits
        assert (expected - found).abs().max() < 1e-5
        assert (expected - plain).abs().max() > 1e-3
        assert checkpoint.source == "speech"

    def test_a_built_in_llm_can_be_the_base(self, adapter: Path, tiny_llm_folder: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr("lsm_probe.assets.language_model", lambda: tiny_llm_folder)
        edit(adapter, base_model_name_or_path="somebody/else")
        checkpoint = lsm_probe.load(adapter, base="builtin:llm")
        expected = lsm_probe.load(adapter, base=str(tiny_llm_folder))
        assert torch.equal(checkpoint.model(input_ids=IDS).logits, expected.model(input_ids=IDS).logits)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision_is_kept(self, adapter: Path, dtype: str) -> None:
        model = lsm_probe.load(adapter, device="cpu", dtype=dtype).model
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}

    def test_adapter_model_bin_is_read(self, adapter: Path) -> None:
        expected = lsm_probe.load(adapter).model(input_ids=IDS).logits
        torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
        (adapter / "adapter_model.safetensors").unlink()
        assert torch.equal(lsm_probe.load(adapter).model(input_ids=IDS).logits, expected)

    def test_the_tokenizer_in_the_adapter_folder_is_used(self, adapter: Path, tiny_llm: Any) -> None:
        tokenizer = tiny_llm.tokenizer
        written = tokenizer.chat_template
        try:
            tokenizer.chat_template = "NEW " + written
            tokenizer.save_pretrained(adapter)
        finally:
            tokenizer.chat_template = written
        checkpoint = lsm_probe.load(adapter)
        assert checkpoint.decode(checkpoint.encode("Repeat.", "the rain").input_ids).startswith("NEW")

    def test_a_saved_merged_checkpoint_gives_the_same_logits(self, tiny_llm_folder: Path, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
        folder = save_adapter(tmp_path / "adapter", model, KINDS["new head"], str(tiny_llm_folder))
        merged = lsm_probe.load(folder)
        merged.save(tmp_path / "merged")
        again = lsm_probe.load(tmp_path / "merged")
        assert torch.equal(merged.model(input_ids=IDS).logits, again.model(input_ids=IDS).logits)


def test_an_adapter_and_its_base_are_loaded_from_the_hub(
    adapter: Path, tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files in the local cache of the model hub."""
    expected = lsm_probe.load(adapter).model(input_ids=IDS).logits
    edit(adapter, base_model_name_or_path="somebody/base")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, folder in (("base", tiny_llm_folder), ("adapter", adapter)):
        kept, commit = tmp_path / "hub" / f"models--somebody--{name}", "0123456789abcdef" * 2 + "01234567"
        shutil.copytree(folder, kept / "snapshots" / commit)
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text(commit)
    lacking = tmp_path / "hub" / "models--somebody--adapter" / ".no_exist" / commit
    lacking.mkdir(parents=True)
    for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja"):
        (lacking / name).touch()
    monkeypatch.setattr("lsm_probe.models.adapters.find_file", None)  # no file of the adapter is requested again
    checkpoint = lsm_probe.load("somebody/adapter")
    assert torch.equal(checkpoint.model(input_ids=IDS).logits, expected)
    assert checkpoint.identity.revision == commit
    assert checkpoint.identity.adapter is not None
    assert checkpoint.name == "somebody/adapter"
    refusal(Path("somebody/base"), "is not an adapter", base=str(tiny_llm_folder))


def test_an_adapter_on_the_hub_is_loaded_without_a_cached_copy(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lsm_probe.models import adapters

    def from_hub(name: str, file: str) -> Path | None:
        asked.append(file)
        found = adapter / file
        return found if found.is_file() else None

    def no_config(*args: Any, **kwargs: Any) -> None:
        raise OSError("somebody/adapter does not appear to have a file named config.json.")

    asked: list[str] = []
    expected = lsm_probe.load(adapter).model(input_ids=IDS).logits
    monkeypatch.setattr(adapters, "find_file", from_hub)
    own = AutoConfig.from_pretrained
    monkeypatch.setattr(
        AutoConfig, "from_pretrained", lambda name, **more: (no_config if "somebody" in name else own)(name, **more)
    )
    assert torch.equal(lsm_probe.load("somebody/adapter").model(input_ids=IDS).logits, expected)
    assert asked[0] == "adapter_config.json"


class TestBase:
    def test_a_base_path_relative_to_the_adapter_folder_is_found(self, adapter: Path, tiny_llm_folder: Path) -> None:
        shutil.copytree(tiny_llm_folder, adapter / "base")
        edit(adapter, base_model_name_or_path="base")
        assert look_up(str(adapter)) == "text"
        lsm_probe.load(adapter)

    def test_the_kind_of_the_base_is_known_without_loading_weights(
        self, adapter: Path, tiny_lsm_folder: Path, tiny_llm_folder: Path
    ) -> None:
        assert look_up(str(adapter)) == "text"
        assert look_up(str(adapter), base=str(tiny_lsm_folder)) == "speech"
        assert look_up(str(adapter), base="builtin:untrained") == "speech"
        load_text_check(str(adapter))("Repeat.", "the rain", None)

    @pytest.mark.parametrize(
        ("named", "message"),
        [(None, "names no base"), ("/nowhere/base", "on /nowhere/base, which is not here"), ("no/one", "--base names")],
    )
    def test_a_missing_base_is_refused(self, adapter: Path, named: str | None, message: str) -> None:
        edit(adapter, base_model_name_or_path=named)
        refusal(adapter, message, "--base")

    def test_an_adapter_as_the_base_is_refused(self, adapter: Path) -> None:
        edit(adapter, base_model_name_or_path=str(adapter))
        refusal(adapter, "which is an adapter itself")

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"hidden_size": 60}, "size mismatch"),
            ({"num_hidden_layers": 1}, "which has no place for 4 tensors (base_model.model.model.layers.1."),
        ],
    )
    def test_a_base_of_another_size_is_refused(
        self, adapter: Path, tiny_llm_folder: Path, tmp_path: Path, sizes: dict[str, int], message: str
    ) -> None:
        other = tmp_path / "other"
        AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(tiny_llm_folder, **sizes)).save_pretrained(other)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_llm_folder / name, other)
        refusal(adapter, f"{adapter} does not fit its base {other}", message, "--base", base=str(other))

    def test_the_base_is_part_of_the_identity(self, adapter: Path, tiny_llm_folder: Path, tmp_path: Path) -> None:
        identity = lsm_probe.load(adapter).identity
        base = lsm_probe.load(tiny_llm_folder).identity
        assert identity.adapter is not None
        assert identity.adapter.peft_type == "LORA"
        assert identity.adapter.sha256.keys() == {"adapter_config.json", "adapter_model.safetensors"}
        assert identity.adapter.base.weights_sha256 == base.weights_sha256
        assert identity.weights_sha256.keys() == {"model.safetensors", "adapter_model.safetensors"}
        assert identity.prompt_sha256 == base.prompt_sha256
        assert ModelIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity


def test_a_name_that_is_too_long_is_refused(lsm_probe_command: Any) -> None:
    name = "a" * 300
    refusal(Path(name), f"{name} cannot be loaded")
    code, _, err = lsm_probe_command("attention", "--ckpt", name, "--data", "builtin:probe", "--device", "cpu")
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {name} cannot be loaded")


class TestTokenizerInTheFolderOfAnAdapter:
    @pytest.fixture
    def on_lsm(self, adapter: Path, tiny_lsm_folder: Path) -> Path:
        edit(adapter, base_model_name_or_path=str(tiny_lsm_folder))
        return adapter

    def test_the_tokenizer_of_the_llm_is_accepted(self, on_lsm: Path, tiny_llm_folder: Path) -> None:
        AutoTokenizer.from_pretrained(tiny_llm_folder).save_pretrained(on_lsm)
        assert lsm_probe.load(on_lsm, device="cpu").source == "speech"

    def test_a_tokenizer_with_other_tokens_is_refused(self, on_lsm: Path, tiny_llm_folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(on_lsm)
        refusal(on_lsm, "has another tokenizer than its base")

    def test_a_tokenizer_with_another_chat_template_is_refused(self, on_lsm: Path, tiny_llm_folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
        tokenizer.chat_template = f"NEW {tokenizer.chat_template}"
        tokenizer.save_pretrained(on_lsm)
        refusal(on_lsm, "has another chat template than its base")


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "learned vectors"),
            (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "learned vectors"),
            (peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "learned vectors"),
            (peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM"), "learned vectors"),
        ],
        ids=lambda value: getattr(value, "peft_type", None),
    )
    def test_adapters_that_do_not_only_change_weights(
        self, tiny_llm_folder: Path, tmp_path: Path, config: peft.PeftConfig, message: str
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
        folder = save_adapter(tmp_path / "adapter", model, config, str(tiny_llm_folder))
        refusal(folder, f"is a {config.peft_type.value} adapter that cannot be merged into its base", message)

    def test_an_adapter_type_that_peft_cannot_merge(self, tiny_llm_folder: Path, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
        config = LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)
        folder = save_adapter(tmp_path / "adapter", model, config, str(tiny_llm_folder))
        refusal(folder, "is a LORA adapter that cannot be merged into its base: Impossible to merge", "no bias")

    def test_a_merge_that_changes_the_outputs(self, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda self, *args, **kwargs: None)
        refusal(adapter, "the merged model gives other outputs than the base with the adapter")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
            ({"alora_invocation_tokens": [5]}, "a part of the prompt only"),
            ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "Megatron"),
            ({"peft_type": "NEVER_HEARD_OF"}, "the installed peft does not know"),
            ({"peft_type": None}, "names no peft_type"),
        ],
    )
    def test_invalid_settings(self, adapter: Path, changes: dict[str, Any], message: str) -> None:
        edit(adapter, **changes)
        refusal(adapter, str(adapter), message)

    def test_an_unused_tensor(self, adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        more = {"base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight": torch.ones(2, 48)}
        save_file({**load_file(path), **more}, path, metadata={"format": "pt"})
        refusal(adapter, "has no place for 1 tensor", "k_proj.lora_A")

    def test_a_missing_tensor(self, adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        weights = load_file(path)
        del weights["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
        save_file(weights, path, metadata={"format": "pt"})
        refusal(adapter, "lacks 1 tensor", "layers.1.self_attn.q_proj.lora_B")

    def test_missing_or_damaged_weights(self, adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        refusal(adapter, "is damaged")
        path.unlink()
        refusal(adapter, "holds adapter_config.json and no adapter")

    @pytest.mark.parametrize("config", [True, False])
    def test_tensors_outside_of_the_adapter(self, adapter: Path, tiny_llm_folder: Path, config: bool) -> None:
        """As LLaVA's training saves them: adapter, connector and config.json in one folder."""
        weights = {"base_model.model.model.mm_projector.weight": torch.ones(4)}
        torch.save(weights, adapter / "non_lora_trainables.bin")
        if config:
            shutil.copy(tiny_llm_folder / "config.json", adapter)
        refusal(adapter, "holds non_lora_trainables.bin", "mm_projector.weight", "merge")
