"""Ultravox: random releases in its three layouts, compared with the computation written out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import gelu
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3Config,
    Glm4MoeConfig,
    MistralConfig,
    Qwen2Config,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

import lsm_probe
from lsm_probe.errors import InputError

INSTRUCTION = "Write down what the speaker says."
LAYOUTS = {"whole": (), "without the LLM": ("llm",), "connector alone": ("llm", "encoder")}
WINDOW, HIDDEN = 8, 20


def draw_connector(llm_dim: int, middle_norm: bool) -> dict[str, Tensor]:
    torch.manual_seed(5)
    stacked = WINDOW * 32
    norm = {"ln_mid.weight": torch.rand(HIDDEN) + 0.5} if middle_norm else {"ln_post.weight": torch.rand(llm_dim) + 0.5}
    return {
        "ln_pre.weight": torch.rand(stacked) + 0.5,
        "linear_1.weight": torch.randn(2 * HIDDEN, stacked) * 0.1,
        "linear_2.weight": torch.randn(llm_dim, HIDDEN) * 0.2,
        **norm,
    }


@pytest.fixture
def make_release(
    tmp_path: Path, tiny_encoder_folder: Path, tiny_llm_folder: Path
) -> Callable[..., tuple[Path, dict[str, str]]]:
    """`make_release(left_out, middle_norm, llm)`: the folder of a release, and the parts that it does not contain."""

    def make(
        left_out: tuple[str, ...] = (), *, middle_norm: bool = True, llm: Path = tiny_llm_folder, **settings: Any
    ) -> tuple[Path, dict[str, str]]:
        folder = tmp_path / "release"
        folder.mkdir()
        text_config = AutoConfig.from_pretrained(llm)
        width = text_config.get_text_config().hidden_size
        tensors = {f"multi_modal_projector.{k}": t for k, t in draw_connector(width, middle_norm).items()}
        config: dict[str, Any] = {
            "model_type": "ultravox",
            "architectures": ["UltravoxModel"],
            "auto_map": {"AutoConfig": "ultravox_config.UltravoxConfig", "AutoModel": "ultravox_model.UltravoxModel"},
            "hidden_size": 2 * HIDDEN,
            "stack_factor": WINDOW,
            "projector_act": "swiglu",
            "projector_ln_mid": middle_norm,
            "audio_model_id": None,
            "text_model_id": None,
        }
        if "encoder" in left_out:
            config["audio_model_id"] = "openai/whisper-medium"
        else:
            config["audio_config"] = WhisperConfig.from_pretrained(tiny_encoder_folder).to_dict()
            encoder = WhisperModel.from_pretrained(tiny_encoder_folder).encoder.state_dict()
            tensors |= {f"audio_tower.{name}": tensor for name, tensor in encoder.items()}
        if "llm" in left_out:
            config["text_model_id"] = "meta-llama/Meta-Llama-3.1-8B-Instruct"
        else:
            config["text_config"] = text_config.to_dict()
            llm_tensors = load_file(llm / "model.safetensors")  # of tied embeddings only one is stored
            tensors |= {f"language_model.{name}": tensor for name, tensor in llm_tensors.items()}
        (folder / "config.json").write_text(json.dumps(config | settings))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
        AutoTokenizer.from_pretrained(tiny_llm_folder).save_pretrained(folder)
        for name in ("ultravox_config.py", "ultravox_model.py"):
            (folder / name).write_text("raise SystemExit('code of the checkpoint ran')")
        places = {"encoder": str(tiny_encoder_folder), "llm": str(llm)}
        return folder, {part: places[part] for part in left_out}

    return make


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@torch.no_grad()
def speech_by_hand(encoder: Path, audio: NDArray[np.float32], connector: dict[str, Tensor]) -> Tensor:
    """Whisper's own layers on the states of the clip only, then the connector, one stack after another."""
    padded = np.pad(audio, (0, -len(audio) % 160))
    mel = WhisperFeatureExtractor()(padded, sampling_rate=16_000, padding=False, return_tensors="pt").input_features
    whisper: Any = WhisperModel.from_pretrained(encoder).encoder.eval()
    convolved = gelu(whisper.conv2(gelu(whisper.conv1(mel))))[0].T
    states = len(convolved)
    made = (convolved + whisper.embed_positions.weight[:states])[None]
    for layer in whisper.layers:
        made = layer(made, None)
    made = whisper.layer_norm(made)[0]
    tokens = []
    for begin in range(0, states, WINDOW):
        stack = torch.zeros(WINDOW * 32)
        seen = made[begin : begin + WINDOW].flatten()
        stack[: len(seen)] = seen
        value, gate = (connector["linear_1.weight"] @ rms(stack, connector["ln_pre.weight"])).split(HIDDEN)
        gated = gate / (1 + (-gate).exp()) * value
        if "ln_mid.weight" in connector:
            gated = rms(gated, connector["ln_mid.weight"])
        token = connector["linear_2.weight"] @ gated
        tokens.append(rms(token, connector["ln_post.weight"]) if "ln_post.weight" in connector else token)
    return torch.stack(tokens)


@pytest.mark.parametrize(("middle_norm", "seconds", "tokens"), [(True, 1.9, 12), (False, 1.61, 11)])
@pytest.mark.parametrize("left_out", LAYOUTS.values(), ids=LAYOUTS)
def test_a_release_matches_the_reference_computation(
    make_release: Callable[..., Any],
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    clip: Callable[..., Path],
    tmp_path: Path,
    left_out: tuple[str, ...],
    middle_norm: bool,
    seconds: float,
    tokens: int,
) -> None:
    folder, parts = make_release(left_out, middle_norm=middle_norm)
    audio = str(clip(tmp_path / "a.wav", seconds=seconds))
    sample = lsm_probe.Sample(id="a", instruction=INSTRUCTION, audio=audio, text="words")
    checkpoint: Any = lsm_probe.load(folder, device="cpu", dtype="float32", **parts)
    source: Any = sample.read_source("speech")
    speech = speech_by_hand(tiny_encoder_folder, source, draw_connector(48, middle_norm))
    assert len(speech) == tokens  # 190 mel frames and 95 states, or 161 and 81
    torch.testing.assert_close(checkpoint.encode_speech(source), speech, rtol=0, atol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
    chat = [{"role": "user", "content": f"{INSTRUCTION} <|audio|>"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    before, after = (tokenizer(text, add_special_tokens=False).input_ids for text in rendered.split("<|audio|>"))
    placeholder = checkpoint.processor.audio_token_id
    assert checkpoint.prompt_ids(sample) == [*before, *[placeholder] * len(speech), *after]

    llm = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    words = llm.get_input_embeddings()
    with torch.no_grad():
        embedded = torch.cat([words(torch.tensor(before)), speech, words(torch.tensor(after))])
        logits = llm(inputs_embeds=embedded[None]).logits[0]
    torch.testing.assert_close(checkpoint.logits(sample), logits, rtol=0, atol=2e-5)
    assert checkpoint.identity.published == "ultravox"
    assert (checkpoint.identity.llm is not None, checkpoint.identity.encoder is not None) == (
        "llm" in left_out,
        "encoder" in left_out,
    )

    checkpoint.save(tmp_path / "saved")
    again = lsm_probe.load(tmp_path / "saved", device="cpu", dtype="float32")
    assert again.template.name == "ultravox"
    assert torch.equal(again.logits(sample), checkpoint.logits(sample))


SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
SEEING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LLMS: dict[str, Callable[[int], Any]] = {
    "gemma2": lambda vocabulary: Gemma2Config(vocab_size=vocabulary, **SIZES),
    "mistral": lambda vocabulary: MistralConfig(vocab_size=vocabulary, **SIZES),
    "qwen2, tied": lambda vocabulary: Qwen2Config(vocab_size=vocabulary, tie_word_embeddings=True, **SIZES),
    "gemma3, which sees": lambda vocabulary: Gemma3Config(
        text_config=SIZES | {"vocab_size": vocabulary},
        vision_config=SEEING | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        boi_token_index=vocabulary - 3,
        eoi_token_index=vocabulary - 2,
        image_token_index=vocabulary - 1,
    ),
}


@pytest.mark.parametrize("left_out", [("llm",), ()], ids=["LLM left out", "whole"])
@pytest.mark.parametrize("kind", LLMS)
def test_a_release_with_another_llm_matches_the_reference_computation(
    make_release: Callable[..., Any],
    tiny_tokenizer: Any,
    waveform: Callable[..., Any],
    tmp_path: Path,
    kind: str,
    left_out: tuple[str, ...],
) -> None:
    torch.manual_seed(1)
    llm = AutoModelForCausalLM.from_config(LLMS[kind](len(tiny_tokenizer) + 20)).eval()
    llm.save_pretrained(tmp_path / "llm")
    folder, parts = make_release(left_out, llm=tmp_path / "llm")
    checkpoint = lsm_probe.load(folder, device="cpu", dtype="float32", **parts)
    prompt = checkpoint.encode(INSTRUCTION, waveform(1.0))
    embedded = checkpoint.embed([prompt])[0]
    with torch.no_grad():
        expected, found = (model(inputs_embeds=embedded[None]).logits for model in (llm, checkpoint.llm))
    assert torch.equal(expected, found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), ["does not hold its encoder", "--encoder", "openai/whisper-medium"]),
        (("encoder",), ["does not hold its llm", "--llm", "meta-llama/Meta-Llama-3.1-8B-Instruct"]),
    ],
)
def test_a_missing_part_is_named(make_release: Callable[..., Any], given: tuple[str, ...], words: list[str]) -> None:
    folder, parts = make_release(("llm", "encoder"))
    with pytest.raises(InputError) as error:
        lsm_probe.load(folder, device="cpu", **{part: parts[part] for part in given})
    assert all(word in str(error.value) for word in words), error.value


def test_an_option_for_a_part_that_the_release_contains_is_refused(
    make_release: Callable[..., Any], tiny_llm_folder: Path, lsm_probe_command: Any, tmp_path: Path
) -> None:
    folder, _ = make_release()
    with pytest.raises(InputError, match=r"--llm .* has its own"):
        lsm_probe.load(folder, device="cpu", llm=tiny_llm_folder)
    code, _, err = lsm_probe_command("import", folder, "--llm", tiny_llm_folder, "--out", tmp_path / "out")
    assert code == 2
    assert "has its own; leave the option out" in err


def test_parts_of_the_wrong_size_are_refused(
    make_release: Callable[..., Any], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    folder, parts = make_release(("llm", "encoder"))
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(MistralConfig(vocab_size=400, **SIZES | {"hidden_size": 64})).save_pretrained(
        tmp_path / "wide"
    )
    with pytest.raises(InputError, match=r"--llm .*wide has hidden states 64 wide, and the connector .* with 48"):
        lsm_probe.load(folder, device="cpu", encoder=tiny_encoder_folder, llm=tmp_path / "wide")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 399}))
    with pytest.raises(InputError, match=r"--llm .* has a vocabulary of .* has 399"):
        lsm_probe.load(folder, device="cpu", **parts)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"projector_act": "gelu"}, "projector_act 'gelu'"),
        ({"audio_latency_block_size": 100}, "audio_latency_block_size 100"),
        ({"audio_config": {"model_type": "wav2vec2"}}, "'wav2vec2' model as its audio_config"),
        ({"text_config": {"model_type": "unheard-of"}}, "'unheard-of' model as its text_config"),
        ({"text_config": ["llama"]}, "makes no LlamaConfig"),
        ({"audio_config": {"d_model": "wide"}}, "makes no WhisperConfig"),
        ({"hidden_size": "wide"}, "has hidden_size 'wide': it must be an integer"),
        ({"stack_factor": 0}, "makes no LsmProjectorConfig .*window is 0"),
    ],
)
def test_an_unsupported_variant_is_refused(
    make_release: Callable[..., Any], settings: dict[str, Any], words: str
) -> None:
    folder, _ = make_release(**settings)
    with pytest.raises(InputError, match=words):
        lsm_probe.load(folder, device="cpu")


def _add(tensors: dict[str, Tensor]) -> None:
    tensors["language_model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 48)


def _lose(tensors: dict[str, Tensor]) -> None:
    del tensors["multi_modal_projector.linear_2.weight"]


def _cut(tensors: dict[str, Tensor]) -> None:
    name = "audio_tower.layers.0.fc1.weight"
    tensors[name] = tensors[name][1:].clone()


def _rename(tensors: dict[str, Tensor]) -> None:
    tensors["adapter.weight"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_add, r"hold 1 tensor \(language_model.*q_proj.lora_A.weight\).*merge its adapter"),
        (_lose, r"lack 1 tensor \(multi_modal_projector.linear_2.weight\)"),
        (_cut, r"another shape in 1 tensor \(audio_tower.layers.0.fc1.weight \[63, 32\] instead of \[64, 32\]\)"),
        (_rename, r"holds 1 tensor \(adapter.weight\) that this system does not have"),
    ],
)
def test_unexpected_tensors_are_refused(
    make_release: Callable[..., Any], change: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    folder, _ = make_release()
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=words):
        lsm_probe.load(folder, device="cpu")


def test_tensors_that_the_llm_declares_to_be_unused_are_named_in_a_warning(
    make_release: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """As in releases on GLM-4-MoE, whose layer 46 predicts further tokens and is not loaded."""
    experts = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_shared_experts": 1, "moe_intermediate_size": 8}
    config = Glm4MoeConfig(vocab_size=len(tiny_tokenizer) + 20, **SIZES, **experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    folder, _ = make_release(llm=tmp_path / "llm")
    name = "language_model.model.layers.46.eh_proj.weight"
    tensors = load_file(folder / "model.safetensors") | {name: torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.warns(UserWarning, match=rf"without 1 tensor \({name}\) that this class does not use"):
        lsm_probe.load(folder, device="cpu")


def test_files_of_two_versions_in_one_folder_are_refused(make_release: Callable[..., Any], tmp_path: Path) -> None:
    """As in v0_4-70b, whose old shards are beside a file with the connector only."""
    folder, _ = make_release()
    whole = shutil.copy(folder / "model.safetensors", tmp_path)
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    (folder / "model.safetensors").unlink()
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in shards.items() for name in held}}))
    lsm_probe.load(folder, device="cpu")

    connector = {name: tensor for name, tensor in tensors.items() if name.startswith("multi_modal")}
    save_file(connector, folder / "model.safetensors")
    two = r"holds model.safetensors beside model-00001-of-00002.safetensors.*two versions"
    with pytest.raises(InputError, match=two):
        lsm_probe.load(folder, device="cpu")
    index.rename(tmp_path / "index.json")
    with pytest.raises(InputError, match=two):
        lsm_probe.load(folder, device="cpu")
    (tmp_path / "index.json").rename(index)
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model-00002-of-00002.safetensors, which its index"):
        lsm_probe.load(folder, device="cpu")
