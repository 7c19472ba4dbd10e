"""Loading: unsupported checkpoints are refused in one line that names them, and no foreign code is executed."""

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3_5VisionConfig,
    ViTConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.checkpoint_kinds import Lsm, TextLlm
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.lookup import load_prompter


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(params=["llm", "lsm"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the tiny text LLM and one of the tiny LSM; a test may damage them."""
    return shutil.copytree(request.getfixturevalue(f"tiny_{request.param}_folder"), tmp_path / request.param)


@pytest.fixture
def llm_copy(tiny_llm_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llm_folder, tmp_path / "llm")


def refusal(*names: str, **options: Any) -> str:
    """The one line with which `load` refuses; it must contain each of `names`."""
    with pytest.raises(InputError) as error:
        lsm_probe.load(**options)
    line = str(error.value)
    assert len(line) < 600
    for name in names:
        assert name in line, line
    return line


def save_weights(folder: Path, weights: dict[str, torch.Tensor], kind: str) -> None:
    """Saves weights in place of `model.safetensors`, as one file, as two shards or as torch saves them."""
    (folder / "model.safetensors").unlink()
    if kind == "torch file":
        torch.save(weights, folder / "pytorch_model.bin")
        return
    names = sorted(weights)
    shards = {"model.safetensors": names}
    if kind == "shards":
        shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
        weight_map = {name: shard for shard, held in shards.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / shard, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestRefusals:
    def test_folder_without_a_config(self, tmp_path: Path) -> None:
        refusal(str(tmp_path), "config.json", name=tmp_path)

    def test_missing_folder_or_offline_hub_name(self, tmp_path: Path) -> None:
        refusal(str(tmp_path / "nowhere"), name=tmp_path / "nowhere")
        refusal("nobody/no-such-model", name="nobody/no-such-model")

    def test_unknown_builtin(self) -> None:
        refusal("builtin:gpt", "builtin:llm", "builtin:untrained", name="builtin:gpt")

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("dtype", "float8"),
            ("dtype", "double"),
            ("device", "abacus"),
            ("device", "cuda:99"),
            ("template", "alpaca"),
        ],
    )
    def test_unknown_option(self, tiny_llm_folder: Path, option: str, value: str) -> None:
        refusal(f"--{option}", value, name=tiny_llm_folder, **{option: value})

    def test_model_that_is_not_a_causal_llm(self, tmp_path: Path) -> None:
        ViTConfig().save_pretrained(tmp_path)
        refusal(str(tmp_path), "vit", name=tmp_path)

    def test_encoder_with_bidirectional_attention(
        self, tmp_path: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        # transformers lists BERT among the causal LMs. It is one only with is_decoder, which encoders do not set.
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        for is_decoder in (True, False):
            config = BertConfig(vocab_size=448, is_decoder=is_decoder, initializer_range=0.2, **sizes)
            BertLMHeadModel(config).save_pretrained(tmp_path)
            make_tokenizer().save_pretrained(tmp_path)
            if is_decoder:
                lsm_probe.load(tmp_path, device="cpu")
            else:
                refusal(str(tmp_path), "bert", "causal", name=tmp_path)

    def test_whisper_by_itself(
        self, tmp_path: Path, tiny_encoder_folder: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        folder = shutil.copytree(tiny_encoder_folder, tmp_path / "whisper")
        make_tokenizer().save_pretrained(folder)
        refusal(str(folder), "whisper", name=folder)

    def test_config_that_is_not_json(self, copy: Path) -> None:
        (copy / "config.json").write_text("{ not json")
        refusal(str(copy), name=copy)

    def test_unknown_model_type(self, copy: Path) -> None:
        edit_config(copy, model_type="perceptron2000")
        refusal(str(copy), "perceptron2000", name=copy)

    @pytest.mark.parametrize("classes", [None, ["PerceptronForCausalLM"]])
    @pytest.mark.parametrize("code", [True, False])
    def test_an_unknown_model_type_does_not_suggest_an_upgrade(
        self, copy: Path, classes: list[str] | None, code: bool
    ) -> None:
        edit_config(copy, model_type="perceptron2000", architectures=classes)
        if code:
            edit_config(copy, auto_map={"AutoConfig": "own.Own"})
        line = refusal("'perceptron2000' model", name=copy)
        assert "upgrade" not in line
        assert "pip" not in line
        assert ("PerceptronForCausalLM" in line) == bool(classes)
        assert ("the code that comes with it is not run" in line) == code

    def test_config_without_a_model_type(self, copy: Path) -> None:
        edit_config(copy, model_type=None)
        refusal("names no model_type", name=copy)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"model_type": "mini_omni"}, "Mini-Omni: at each position it averages several streams"),
            ({"model_type": "kimi_audio"}, "Kimi-Audio: it adds speech to the embeddings of the audio tokens"),
            ({"model_type": "x", "architectures": ["MoonshotKimiaForCausalLM"]}, "Kimi-Audio"),
            ({"model_type": "wavllm"}, "WavLLM: its LLM reads the prompt once before"),
            (
                {"model_type": "chatglm", "padded_vocab_size": 168960},
                "GLM-4-Voice: its speech is a sequence of discrete",
            ),
            ({"model_type": "step1", "architectures": ["Step1ForCausalLM"]}, "Step-Audio: its speech is a sequence"),
            ({"model_type": "step_audio_2"}, "Step-Audio 2: its code is not part of transformers"),
            ({"model_type": "qwen", "audio": {}}, "Qwen-Audio (the first one)"),
            ({"model_type": "minicpmo"}, "MiniCPM-o: its code is not part of transformers"),
            ({"model_type": "phi4mm"}, "(model_type phi4_multimodal) as --base"),
            ({"model_type": "moshi", "architectures": None}, "adds its speech onto the positions of the text"),
            ({"model_type": "chatglm"}, "'chatglm' model"),
            ({"model_type": "qwen"}, "'qwen' model"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_speech_llms_that_cannot_be_measured(self, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert "upgrade" not in refusal(message, name=tmp_path)

    def test_mini_omni_folder_layout(self, tmp_path: Path) -> None:
        (tmp_path / "model_config.yaml").write_text("name: qwen2-0.5b\nwhisper_adapter_dim: 768\n")
        refusal("Mini-Omni", "averages several streams", name=tmp_path)

    @pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
    def test_missing_file(self, copy: Path, file: str) -> None:
        (copy / file).unlink()
        refusal(str(copy), name=copy)

    def test_missing_processor_of_an_lsm(self, tiny_lsm_folder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(tiny_lsm_folder, tmp_path / "lsm")
        (folder / "processor_config.json").unlink()
        refusal(str(folder), name=folder)

    @pytest.mark.parametrize("kept", [0, 4, 100, -1])
    def test_truncated_weights(self, copy: Path, kept: int) -> None:
        path = copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        refusal(str(copy), name=copy)

    def test_garbage_for_weights(self, copy: Path) -> None:
        (copy / "model.safetensors").write_bytes(b"\xff" * 5000)
        refusal(str(copy), name=copy)

    def test_weights_that_lack_a_tensor(self, copy: Path) -> None:
        # transformers would draw it at random and only warn.
        path = copy / "model.safetensors"
        weights = load_file(path)
        lost = next(name for name in weights if name.endswith("layers.1.self_attn.v_proj.weight"))
        del weights[lost]
        save_file(weights, path, metadata={"format": "pt"})
        refusal(str(copy), lost.split("model.")[-1], name=copy)

    def test_weights_of_the_wrong_size(self, copy: Path) -> None:
        path = copy / "model.safetensors"
        weights = load_file(path)
        other = next(name for name in weights if name.endswith("layers.1.self_attn.v_proj.weight"))
        weights[other] = weights[other][:3].contiguous()
        save_file(weights, path, metadata={"format": "pt"})
        refusal(f"{other} [3, ", "instead of [", name=copy)

    @pytest.mark.parametrize("kind", ["one file", "shards", "torch file"])
    @pytest.mark.parametrize(
        ("tensor", "named"),
        [
            pytest.param("layers.0.self_attn.q_proj.bias", "q_proj.bias", id="a bias that the config has not"),
            pytest.param("layers.0.self_attn.q_norm.weight", "q_norm.weight", id="a norm that the class has not"),
            pytest.param("layers.3.self_attn.q_proj.weight", "layers.3", id="a layer beyond the config's"),
            pytest.param("layers.0.self_attn.q_proj.lora_A.default.weight", "merge its adapter", id="an adapter's"),
            pytest.param("layers.0.self_attn.bias_of_ours", "bias_of_ours", id="any other"),
        ],
    )
    def test_unused_tensors(self, copy: Path, tensor: str, named: str, kind: str) -> None:
        # transformers would drop them and only log it.
        path = copy / "model.safetensors"
        weights = load_file(path)
        before = next(name for name in weights if "layers.0.mlp" in name).partition("layers.0.")[0]
        unused = {f"{before}{tensor}": torch.ones(4), f"{before}{tensor}.2": torch.ones(4)}
        save_weights(copy, {**weights, **unused}, kind)
        refusal("2 tensors", named, name=copy)

    @pytest.mark.parametrize("kind", ["one file", "shards", "torch file"])
    @pytest.mark.parametrize("named", ["LlavaLlamaForCausalLM", "LlamaForSequenceClassification", None])
    @pytest.mark.parametrize(
        "module", ["model.speech_encoder.conv1", "model.mm_projector", "speech_generator", "model.speech_projector"]
    )
    def test_speech_modules_of_a_class_that_transformers_lacks(
        self, llm_copy: Path, module: str, named: str | None, kind: str
    ) -> None:
        """They belong to the model, whatever class config.json names; its text LLM alone is another model."""
        weights = load_file(llm_copy / "model.safetensors")
        more = {f"{module}.weight": torch.ones(4), f"{module}.bias": torch.ones(4)}
        save_weights(llm_copy, {**weights, **more}, kind)
        edit_config(llm_copy, architectures=named and [named])
        refusal("2 tensors", f"{module}.bias", name=llm_copy)

    @pytest.mark.parametrize("kind", ["one file", "torch file"])
    def test_a_tensor_given_under_two_names(self, llm_copy: Path, kind: str) -> None:
        # transformers adds the prefix where it is missing, and would take one of the two.
        weights = load_file(llm_copy / "model.safetensors")
        weights["norm.weight"] = weights["model.norm.weight"] * 2
        save_weights(llm_copy, weights, kind)
        refusal("1 tensor (model.norm.weight) more than once", name=llm_copy)

    def test_a_tensor_in_two_shards(self, llm_copy: Path) -> None:
        weights = load_file(llm_copy / "model.safetensors")
        save_weights(llm_copy, weights, "shards")
        name = min(weights)
        second = llm_copy / "model-00002-of-00002.safetensors"
        save_file({**load_file(second), name: weights[name] * 2}, second, metadata={"format": "pt"})
        refusal(f"1 tensor ({name}) more than once", name=llm_copy)

    @pytest.mark.parametrize(
        "file", ["mm_projector.bin", "model-00003-of-00002.safetensors", "connector.pt", "speech.safetensors"]
    )
    def test_a_weights_file_that_would_not_be_read(self, copy: Path, file: str) -> None:
        weights = {"mm_projector.0.weight": torch.ones(4), "mm_projector.2.weight": torch.ones(4)}
        if file.endswith(".safetensors"):
            save_file(weights, copy / file)
        else:
            torch.save({"model": weights, "step": 3}, copy / file)
        refusal(f"holds {file} beside model.safetensors", "2 tensors (mm_projector.0.weight", name=copy)

    def test_a_copy_of_the_weights_in_another_format(self, copy: Path) -> None:
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        torch.save({"lr": torch.ones(1)}, copy / "optimizer.pt")
        with pytest.warns(UserWarning, match=r"model\.safetensors is read, and not pytorch_model\.bin") as warned:
            lsm_probe.load(copy)
        assert len(warned) == 1

    def test_tied_embeddings_that_differ_are_both_used(self, llm_copy: Path) -> None:
        path = llm_copy / "model.safetensors"
        weights = load_file(path)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
        save_file(weights, path, metadata={"format": "pt"})
        edit_config(llm_copy, tie_word_embeddings=True)
        model: Any = lsm_probe.load(llm_copy).model
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight * 2)

    def test_tensors_that_transformers_ignores_silently(
        self, tmp_path: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        """The text LLM of a model with vision; its class ignores all of `model.visual`."""
        vision = Qwen3_5VisionConfig(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32)
        text = Qwen3_5TextConfig(
            vocab_size=448,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            layer_types=["full_attention"],
        )
        config = Qwen3_5Config(text_config=text.to_dict(), vision_config=vision.to_dict())
        Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        count = sum("visual" in name for name in load_file(tmp_path / "model.safetensors"))
        message = rf"loaded as a Qwen3_5ForCausalLM, without {count} tensors \(model.visual"
        with pytest.warns(UserWarning, match=message):
            lsm_probe.load(tmp_path)

    def test_a_head_for_another_task(self, llm_copy: Path) -> None:
        path = llm_copy / "model.safetensors"
        save_file({**load_file(path), "score.weight": torch.ones(2, 48)}, path, metadata={"format": "pt"})
        refusal("1 tensor (score.weight)", name=llm_copy)
        edit_config(llm_copy, architectures=["LlamaForSequenceClassification"])
        with pytest.warns(UserWarning, match=r"loaded as a LlamaForCausalLM, without 1 tensor \(score.weight\)"):
            lsm_probe.load(llm_copy)

    def test_constants_saved_by_older_versions_are_not_counted_as_weights(self, copy: Path) -> None:
        path = copy / "model.safetensors"
        weights = load_file(path)
        before = next(name for name in weights if "layers.0.mlp" in name).partition("layers.0.")[0]
        constants = {"self_attn.rotary_emb.inv_freq": (4,), "attn.masked_bias": (), "attention.bias": (1, 1, 8, 8)}
        for name, shape in constants.items():
            weights[f"{before}layers.0.{name}"] = torch.ones(shape)
        save_file(weights, path, metadata={"format": "pt"})
        lsm_probe.load(copy)

    @pytest.mark.parametrize(
        "name", ["self_attn.bias", "attention.masked_bias", "rotary_emb.inv_freq", "attn.position_ids"]
    )
    def test_a_tensor_named_like_a_constant_with_another_shape_is_a_weight(self, copy: Path, name: str) -> None:
        path = copy / "model.safetensors"
        weights = load_file(path)
        before = next(name for name in weights if "layers.0.mlp" in name).partition("layers.0.")[0]
        weights[f"{before}layers.0.{name}"] = torch.ones(48, 32)
        save_file(weights, path, metadata={"format": "pt"})
        refusal("1 tensor", name, name=copy)

    @pytest.mark.parametrize("whole", [False, True])
    def test_a_whisper_with_a_layer_missing_from_its_config(
        self,
        tmp_path: Path,
        tiny_encoder_folder: Path,
        tiny_llm_folder: Path,
        tiny_projector: Callable[..., LsmProjectorConfig],
        whole: bool,
    ) -> None:
        """Only the encoder of a Whisper with its head is used; none of its layers may be lost."""
        folder = shutil.copytree(tiny_encoder_folder, tmp_path / "whisper")
        config = WhisperConfig.from_pretrained(folder)
        (WhisperForConditionalGeneration if whole else WhisperModel)(config).save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        if whole:
            weights["proj_out.weight"] = torch.ones(64, 32)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        lsm_probe.build_lsm(folder, tiny_llm_folder, projector=tiny_projector())
        edit_config(folder, encoder_layers=1)
        with pytest.raises(InputError, match=r"15 tensors \(.*encoder.layers.1"):
            lsm_probe.build_lsm(folder, tiny_llm_folder, projector=tiny_projector())

    @pytest.mark.parametrize("name", ["adapter.weight", "model.speech_adapter.weight", "encoder.adapter.weight"])
    def test_a_whisper_with_unknown_modules(
        self,
        tmp_path: Path,
        tiny_encoder_folder: Path,
        tiny_llm_folder: Path,
        tiny_projector: Callable[..., LsmProjectorConfig],
        name: str,
    ) -> None:
        folder = shutil.copytree(tiny_encoder_folder, tmp_path / "whisper")
        path = folder / "model.safetensors"
        save_file({**load_file(path), name: torch.ones(4)}, path, metadata={"format": "pt"})
        with pytest.raises(InputError, match=rf"1 tensor \({name}\)"):
            lsm_probe.build_lsm(folder, tiny_llm_folder, projector=tiny_projector())

    def test_a_merged_model_with_its_adapter(self, llm_copy: Path) -> None:
        # transformers would apply the adapter to weights that have it already.
        model = AutoModelForCausalLM.from_pretrained(llm_copy)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        wrapped.save_pretrained(llm_copy)
        wrapped.merge_and_unload().save_pretrained(llm_copy)
        refusal(str(llm_copy), "model.safetensors", "adapter_config.json", "move", name=llm_copy)
        for load_part in (load_prompter, partial(lsm_probe.build_lsm, llm_copy)):
            with pytest.raises(InputError, match=r"holds model\.safetensors and an adapter"):
                load_part(llm_copy)
        for file in llm_copy.glob("adapter_*"):
            file.unlink()
        lsm_probe.load(llm_copy)

    @pytest.mark.parametrize("file", ["../outside.safetensors", "{folder}/outside.safetensors"])
    def test_an_index_that_points_outside_the_folder(self, copy: Path, file: str) -> None:
        # transformers would read them, and they would be missing from the identity.
        file = file.format(folder=copy.parent)
        (copy / "model.safetensors").rename(copy.parent / "outside.safetensors")
        weight_map = dict.fromkeys(load_file(copy.parent / "outside.safetensors"), file)
        index = copy / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        refusal(str(index), file, "outside the folder", name=copy)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', "\x00"])
    def test_a_damaged_index(self, copy: Path, content: str) -> None:
        (copy / "model.safetensors").unlink()
        (copy / "model.safetensors.index.json").write_text(content)
        refusal(str(copy / "model.safetensors.index.json"), name=copy)

    def test_encoder_and_llm_swapped(
        self, tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Callable[..., LsmProjectorConfig]
    ) -> None:
        for encoder, llm in (
            (tiny_llm_folder, tiny_llm_folder),
            (tiny_encoder_folder, tiny_encoder_folder),
            (tiny_llm_folder, tiny_encoder_folder),
        ):
            with pytest.raises(InputError) as error:
                lsm_probe.build_lsm(encoder, llm, projector=tiny_projector())
            assert str(encoder) in str(error.value) or str(llm) in str(error.value)


class TestNothingIsExecuted:
    @pytest.fixture
    def marker(self, tmp_path: Path) -> Path:
        return tmp_path / "executed"

    @pytest.mark.parametrize("model_type", ["own", None])
    def test_code_in_a_checkpoint(self, copy: Path, marker: Path, model_type: str | None) -> None:
        """A new kind of model is refused; a known kind is loaded by transformers' own code."""
        code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: pass\n"
        (copy / "own.py").write_text(code)
        names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor")
        auto_map: dict[str, Any] = dict.fromkeys(names, "own.Own")
        edit_config(copy, auto_map=auto_map, **({"model_type": model_type} if model_type else {}))
        path = copy / "tokenizer_config.json"
        tokenizer_map = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
        path.write_text(json.dumps(json.loads(path.read_text()) | tokenizer_map))
        if model_type:
            refusal(str(copy), name=copy)
        else:
            lsm_probe.load(copy, device="cpu")
        assert not marker.exists()

    @pytest.fixture
    def bomb(self, marker: Path) -> Any:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (marker,)

        return Bomb()

    def test_pickle_in_place_of_safetensors(self, copy: Path, marker: Path, bomb: Any) -> None:
        (copy / "model.safetensors").unlink()
        torch.save({"lm_head.weight": bomb}, copy / "pytorch_model.bin")
        with (copy / "pytorch_model.bin").open("rb") as file, pytest.raises(pickle.UnpicklingError):
            torch.load(file, weights_only=True)
        refusal(str(copy), name=copy)
        assert not marker.exists()

    @pytest.mark.parametrize("legacy", [False, True])
    def test_pickle_in_place_of_a_shard(self, copy: Path, marker: Path, bomb: Any, legacy: bool) -> None:
        weights = load_file(copy / "model.safetensors")
        (copy / "model.safetensors").unlink()
        shard = "pytorch_model-00001-of-00001.bin"
        # Legacy files are plain pickles, which are executed on loading.
        torch.save({**weights, "bomb": bomb}, copy / shard, _use_new_zipfile_serialization=not legacy)
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
        (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        refusal(str(copy), name=copy)
        assert not marker.exists()

    def test_pickle_in_place_of_an_adapter(self, llm_copy: Path, marker: Path, bomb: Any) -> None:
        """transformers applies an adapter that is in the folder of a whole model."""
        model = AutoModelForCausalLM.from_pretrained(llm_copy)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"])
        peft.get_peft_model(model, config).save_pretrained(llm_copy)
        (llm_copy / "adapter_model.safetensors").unlink()
        torch.save({"bomb": bomb}, llm_copy / "adapter_model.bin")
        refusal(str(llm_copy), name=llm_copy)
        assert not marker.exists()

    def test_torch_weights_are_read_as_tensors_only(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = lsm_probe.load(copy).model.state_dict()
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
        torch_load, calls = torch.load, []

        def spy(*args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs["weights_only"])
            return torch_load(*args, **kwargs)

        monkeypatch.setattr(torch, "load", spy)
        loaded = lsm_probe.load(copy).model.state_dict()
        assert calls
        assert all(calls)
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)

    @pytest.mark.parametrize(
        "banned",
        [
            r"weights_only\W+False",
            r"trust_remote_code\W+True",
            r"allow_pickle\W+True",
            r"pickle\.(load|loads|Unpickler)\b",
            r"^\s*import .*pickle|from pickle import (?!UnpicklingError$)",
        ],
    )
    def test_the_package_never_enables_code_execution(self, banned: str) -> None:
        sources = sorted(Path(lsm_probe.__file__).parent.rglob("*.py"))
        assert len(sources) > 50
        found = [
            f"{path}:{number}: {line.strip()}"
            for path in sources
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            if re.search(banned, line)
        ]
        assert not found


class TestAttention:
    """The probes need sdpa: another implementation in `config.json` is ignored with one warning."""

    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
    @pytest.mark.parametrize("asked", ["eager", "flash_attention_2", "flex_attention"])
    def test_another_implementation_in_the_config_is_overridden(
        self, tiny_llm_folder: Path, llm_copy: Path, key: str, asked: str
    ) -> None:
        sample = lsm_probe.Sample(id="a", instruction="Repeat.", text="the rain", target="the rain")
        plain = lsm_probe.attention(lsm_probe.load(tiny_llm_folder), [sample], response="reference")
        edit_config(llm_copy, **{key: asked})
        with pytest.warns(
            UserWarning, match=rf"config\.json asks for attn_implementation {asked}; .*runs sdpa"
        ) as warned:
            changed = lsm_probe.attention(lsm_probe.load(llm_copy), [sample], response="reference")
        assert len(warned) == 1
        assert changed.norms.tolist() == plain.norms.tolist()

    @pytest.mark.parametrize("part", ["text_config", "audio_config"])
    def test_another_implementation_in_a_part_is_overridden(
        self, tiny_lsm_folder: Path, tmp_path: Path, part: str
    ) -> None:
        folder = shutil.copytree(tiny_lsm_folder, tmp_path / "lsm")
        edit_config(folder, attn_implementation={part: "eager"})
        with pytest.warns(UserWarning, match=rf"config\.json \({part}\) asks for attn_implementation eager"):
            model = lsm_probe.load(folder).model
        running = {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}
        assert running - {None} == {"sdpa"}

    def test_both_parts_of_a_new_lsm_use_it(
        self,
        tiny_encoder_folder: Path,
        llm_copy: Path,
        tmp_path: Path,
        tiny_projector: Callable[..., LsmProjectorConfig],
    ) -> None:
        encoder = shutil.copytree(tiny_encoder_folder, tmp_path / "encoder")
        for folder in (encoder, llm_copy):
            edit_config(folder, attn_implementation="eager")
        with pytest.warns(UserWarning, match="attn_implementation eager") as warned:
            model: Any = lsm_probe.build_lsm(encoder, llm_copy, projector=tiny_projector()).model
        assert len(warned) == 2
        assert model.audio_tower.config._attn_implementation == "sdpa"
        assert model.language_model.config._attn_implementation == "sdpa"


class TestOptions:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_the_dtype_option_is_used(self, copy: Path, dtype: str) -> None:
        model = lsm_probe.load(copy, device="cpu", dtype=dtype).model
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}

    def test_auto_is_float32_on_cpu_and_dropout_is_off(self, copy: Path) -> None:
        model = lsm_probe.load(copy, device="cpu").model
        assert model.dtype == torch.float32
        assert not any(module.training for module in model.modules())

    def test_the_default_template_is_the_tokenizers_or_vicuna(
        self, tmp_path: Path, tiny_llm_folder: Path, save_llm: Callable[..., Path]
    ) -> None:
        assert lsm_probe.load(tiny_llm_folder).template.name == "chat"
        plain = save_llm(tmp_path / "plain", chat_template=None)
        checkpoint = lsm_probe.load(plain)
        assert checkpoint.template.name == "vicuna"
        prompt = checkpoint.encode("Repeat.", "the rain")
        assert "USER:" in checkpoint.decode(prompt.input_ids)

    def test_a_named_template_is_used(self, copy: Path, waveform: Callable[..., Any]) -> None:
        checkpoint = lsm_probe.load(copy, template="vicuna")
        source = waveform(1) if checkpoint.source == "speech" else "the rain"
        assert checkpoint.template.name == "vicuna"
        assert "ASSISTANT:" in checkpoint.decode(checkpoint.encode("Repeat.", source).input_ids)

    def test_an_lsm_keeps_the_template_it_was_built_with(
        self,
        tmp_path: Path,
        tiny_encoder_folder: Path,
        tiny_llm_folder: Path,
        tiny_projector: Callable[..., LsmProjectorConfig],
    ) -> None:
        built = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector(), template="llama3")
        built.model.save_pretrained(tmp_path)
        built.processor.save_pretrained(tmp_path)
        assert lsm_probe.load(tmp_path).template.name == "llama3"

    def test_text_llms_and_lsms_are_distinguished(self, tiny_llm_folder: Path, tiny_lsm_folder: Path) -> None:
        text, speech = lsm_probe.load(tiny_llm_folder), lsm_probe.load(str(tiny_lsm_folder))
        assert (text.source, speech.source) == ("text", "speech")
        assert text.llm is text.model
        assert isinstance(text, TextLlm)
        assert isinstance(speech, Lsm)
        assert speech.llm is speech.model.language_model
        assert text.context_length == speech.context_length == 1024
        assert text.eos_token_ids == speech.eos_token_ids == [text.tokenizer.eos_token_id]


class TestIdentity:
    def test_it_contains_the_sha256_of_the_weights(self, copy: Path) -> None:
        identity = lsm_probe.load(copy).identity
        expected = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
        assert identity.weights_sha256 == {"model.safetensors": expected}
        assert identity.model_type == ("lsm" if copy.name == "lsm" else "llama")

    def test_other_weights_have_another_identity(self, copy: Path) -> None:
        before = lsm_probe.load(copy).identity
        path = copy / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert lsm_probe.load(copy).identity != before

    def test_a_built_lsm_names_its_parts_and_its_seed(
        self, tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Callable[..., LsmProjectorConfig]
    ) -> None:
        identity = lsm_probe.build_lsm(
            tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector(), seed=5
        ).identity
        assert identity.encoder is not None
        assert identity.llm is not None
        assert identity.connector is not None
        for part, folder in ((identity.encoder, tiny_encoder_folder), (identity.llm, tiny_llm_folder)):
            sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
            assert part.weights_sha256 == {"model.safetensors": sha256}
        assert identity.connector.seed == 5
        assert identity.connector.settings["hidden_size"] == 32
        assert ModelIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity


def test_a_prompt_with_token_ids_beyond_the_embeddings_is_refused(tiny_llm):
    embeddings = tiny_llm.llm.get_input_embeddings()
    embeddings.weight = torch.nn.Parameter(embeddings.weight[:300].detach())
    prompt = tiny_llm.encode("Repeat.", "She sells sea shells.")
    with pytest.raises(InputError, match=r"the prompt has token 3\d\d, and the LLM has embeddings for 300"):
        tiny_llm.embed([prompt])


@pytest.mark.parametrize("change", [{"feature_size": 128}, {"chunk_length": 20}, {"sampling_rate": 8_000}])
def test_a_feature_extractor_for_another_encoder_is_refused(
    tiny_lsm, tiny_encoder_folder, tiny_llm_folder, tmp_path, change
):
    tiny_lsm.save(tmp_path / "lsm")
    path = tmp_path / "lsm" / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["feature_extractor"] |= change
    path.write_text(json.dumps(settings))
    (tmp_path / "lsm" / "checksums.json").unlink()
    with pytest.raises(InputError, match=r"the feature extractor has .*, and the encoder needs"):
        lsm_probe.load(tmp_path / "lsm")
    encoder = shutil.copytree(tiny_encoder_folder, tmp_path / "encoder")
    WhisperFeatureExtractor(**change).save_pretrained(encoder)
    with pytest.raises(InputError, match=r"the feature extractor has .*, and the encoder needs"):
        lsm_probe.build_lsm(encoder, tiny_llm_folder)
