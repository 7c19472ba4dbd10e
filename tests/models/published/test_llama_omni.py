"""LLaMA-Omni and LLaMA-Omni 2: random releases compared with their computation written out."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, relu
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperModel,
)

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.published import find_system
from lsm_probe.models.templates import find_template

STACK, HIDDEN = 7, 20
OPENAI_NAMES = {
    r"^layers\.": "blocks.",
    r"self_attn_layer_norm": "attn_ln",
    r"final_layer_norm": "mlp_ln",
    r"self_attn\.q_proj": "attn.query",
    r"self_attn\.k_proj": "attn.key",
    r"self_attn\.v_proj": "attn.value",
    r"self_attn\.out_proj": "attn.out",
    r"fc1": "mlp.0",
    r"fc2": "mlp.2",
    r"^layer_norm": "ln_post",
    r"embed_positions\.weight": "positional_embedding",
}


def openai_encoder(encoder: WhisperModel) -> dict[str, Tensor]:
    """The tensors of a Whisper encoder under OpenAI's names."""
    renamed = {}
    for name, tensor in encoder.encoder.state_dict().items():
        for ours, theirs in OPENAI_NAMES.items():
            name = re.sub(ours, theirs, name)
        renamed[name] = tensor
    return renamed


def make_whisper(width: int, heads: int, seed: int) -> WhisperModel:
    config = WhisperConfig(
        vocab_size=64, d_model=width, encoder_layers=2, encoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_layers=1, decoder_attention_heads=heads, decoder_ffn_dim=4 * width, init_std=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    torch.manual_seed(seed)
    return WhisperModel(config).eval()


def save_openai(path: Path, whisper: WhisperModel) -> Path:
    """Saves the encoder of a Whisper as OpenAI does; what reads it needs no decoder."""
    config = whisper.config
    dims = {
        "n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": config.d_model, "n_vocab": 51866, "n_text_ctx": 448,
        "n_audio_head": config.encoder_attention_heads, "n_audio_layer": 2, "n_text_state": config.d_model,
        "n_text_head": 2, "n_text_layer": 1,
    }  # fmt: skip
    state = {f"encoder.{name}": tensor for name, tensor in openai_encoder(whisper).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"dims": dims, "model_state_dict": state}, path)
    return path


def draw_projector(encoder_dim: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"linear1.weight": (HIDDEN, STACK * encoder_dim), "linear1.bias": (HIDDEN,)}
    shapes |= {"linear2.weight": (48, HIDDEN), "linear2.bias": (48,)}
    return {name: torch.randn(*shape, generator=generator) * 0.2 for name, shape in shapes.items()}


@torch.no_grad()
def speech_by_hand(whisper: WhisperModel, mel: Tensor) -> Tensor:
    """The states of all 30 s, seven side by side; the last 2 of 1,500 are dropped."""
    states = whisper.encoder(mel).last_hidden_state[0]
    stacks = states[: 1500 // STACK * STACK].reshape(1500 // STACK, -1)
    weights = draw_projector(states.shape[1])
    hidden = relu(linear(stacks, weights["linear1.weight"], weights["linear1.bias"]))
    return linear(hidden, weights["linear2.weight"], weights["linear2.bias"])


def check_logits(model: Checkpoint, llm: Any, speech: Tensor, sample: lsm_probe.Sample) -> None:
    ids = torch.tensor(model.prompt_ids(sample))
    is_speech = ids == llm.config.vocab_size
    embedded = llm.get_input_embeddings()(ids.masked_fill(is_speech, 0)).detach()
    embedded[is_speech] = speech
    expected = llm(inputs_embeds=embedded[None]).logits[0].detach()
    torch.testing.assert_close(model.logits(sample), expected, rtol=0, atol=5e-5)


def prompt_text(model: Checkpoint, sample: lsm_probe.Sample) -> str:
    """The prompt as text, `*` for all of its speech."""
    ids = model.prompt_ids(sample)
    vocabulary: int = model.llm.config.vocab_size
    before = ids[: ids.index(vocabulary)]
    after = [token for token in ids[len(before) :] if token != vocabulary]
    return f"{model.tokenizer.decode(before)}*{model.tokenizer.decode(after)}"


WriteRelease = Callable[[Path, Mapping[str, Any], Mapping[str, Tensor]], Path]


@pytest.fixture
def release(
    tmp_path: Path,
    tiny_llm_folder: Path,
    write_release: WriteRelease,
    make_tokenizer: Callable[[], PreTrainedTokenizerFast],
) -> Callable[..., Path]:
    """`release(encoder)`: the folder of a LLaMA-Omni that holds this Whisper's encoder."""

    def make(encoder: WhisperModel, **settings: Any) -> Path:
        llm = LlamaForCausalLM.from_pretrained(tiny_llm_folder)
        held = {f"model.speech_encoder.{name}": tensor for name, tensor in openai_encoder(encoder).items()}
        projector = draw_projector(encoder.config.d_model).items()
        connector = {f"model.speech_projector.{name}": tensor for name, tensor in projector}
        generator = {"speech_generator.output_proj.bias": torch.ones(3)}
        config = llm.config.to_dict() | {
            "model_type": "omni_speech2s_llama",
            "architectures": ["OmniSpeech2SLlamaForCausalLM"],
            "speech_encoder": "models/large-v3.pt",
            "speech_encoder_type": "whisper",
            "speech_projector_type": "linear",
            "speech_encoder_ds_rate": STACK,
            "torch_dtype": "float16",
        }
        tensors = {**llm.state_dict(), **held, **connector, **generator}
        folder = write_release(tmp_path / "release", config | settings, tensors)
        make_tokenizer().save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4, 9]}))
        return folder

    return make


def load_llama(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_the_encoder_is_read_from_the_named_file(
    release: Callable[..., Path],
    tmp_path: Path,
    tiny_llm_folder: Path,
    sample: lsm_probe.Sample,
    mel: Tensor,
    stored: torch.dtype,
) -> None:
    whisper = make_whisper(32, 4, seed=0)
    folder = release(whisper)
    save_openai(tmp_path / "models" / "large-v3.pt", whisper.to(stored))
    whisper.float()
    assert find_system(folder) == "llama_omni"
    model = lsm_probe.load(folder, device="cpu", dtype="float32")
    speech = speech_by_hand(whisper, mel)
    source: Any = sample.read_source("speech")
    torch.testing.assert_close(model.encode_speech(source), speech, rtol=0, atol=2e-5)
    check_logits(model, load_llama(tiny_llm_folder), speech, sample)
    assert model.eos_token_ids == [2, 4, 9]
    assert model.identity.encoder is not None
    assert model.identity.encoder.weights_sha256 is not None
    text = prompt_text(model, sample)
    assert text.startswith("<s><s><|start_header_id|>system")
    assert "*\nWrite down what the speaker says.<|eot_id|>" in text


@pytest.mark.parametrize("is_given", [True, False])
def test_an_encoder_whose_weights_differ_from_the_folder_is_refused(
    release: Callable[..., Path], tmp_path: Path, is_given: bool
) -> None:
    path = save_openai(tmp_path / ("given.pt" if is_given else "models/large-v3.pt"), make_whisper(32, 4, seed=0))
    with pytest.raises(InputError, match=r"release holds the encoder .*--encoder.* has other weights"):
        lsm_probe.load(release(make_whisper(32, 4, seed=1)), device="cpu", encoder=path if is_given else None)


def test_an_encoder_of_another_width_is_refused(release: Callable[..., Path], tmp_path: Path) -> None:
    path = save_openai(tmp_path / "wide.pt", make_whisper(64, 4, seed=0))
    with pytest.raises(InputError, match=r"--encoder .*wide\.pt has hidden states 64 wide, .* trained with 32"):
        lsm_probe.load(release(make_whisper(32, 4, seed=0)), device="cpu", encoder=path)


def test_the_encoder_option_overrides_the_path_in_the_config(
    release: Callable[..., Path], tmp_path: Path, sample: lsm_probe.Sample, mel: Tensor
) -> None:
    whisper = make_whisper(32, 4, seed=0)
    save_openai(tmp_path / "models" / "large-v3.pt", make_whisper(32, 4, seed=2))
    given = save_openai(tmp_path / "given.pt", whisper)
    model = lsm_probe.load(release(whisper), device="cpu", dtype="float32", encoder=given)
    source: Any = sample.read_source("speech")
    torch.testing.assert_close(model.encode_speech(source), speech_by_hand(whisper, mel), rtol=0, atol=2e-5)


def test_the_encoder_in_the_folder_is_read_if_the_named_file_is_missing(
    release: Callable[..., Path], sample: lsm_probe.Sample, mel: Tensor
) -> None:
    whisper = make_whisper(128, 2, seed=0)
    model = lsm_probe.load(release(whisper), device="cpu", dtype="float32")
    source: Any = sample.read_source("speech")
    torch.testing.assert_close(model.encode_speech(source), speech_by_hand(whisper, mel), rtol=0, atol=2e-5)
    assert model.identity.encoder is None


def test_an_encoder_of_unknown_size_needs_its_file(release: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"width 32.*number of attention heads.*--encoder FILE.*models/large-v3\.pt"):
        lsm_probe.load(release(make_whisper(32, 4, seed=0)), device="cpu")


def test_a_missing_encoder_file_is_named(release: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file \S*missing\.pt"):
        lsm_probe.load(release(make_whisper(32, 4, seed=0)), device="cpu", encoder=tmp_path / "missing.pt")


def test_unsupported_connectors_are_refused(release: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="speech_projector_type 'conformer': only 'linear' can be read"):
        lsm_probe.load(release(make_whisper(128, 2, seed=0), speech_projector_type="conformer"), device="cpu")


@pytest.fixture
def release_2(
    tmp_path: Path, write_release: WriteRelease, make_tokenizer: Callable[[], PreTrainedTokenizerFast]
) -> tuple[Path, WhisperModel, Qwen2ForCausalLM]:
    """A LLaMA-Omni 2 with tied embeddings, its encoder and its LLM."""
    tokenizer, whisper = make_tokenizer(), make_whisper(128, 2, seed=0)
    config = Qwen2Config(
        vocab_size=448, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    torch.manual_seed(4)
    llm = Qwen2ForCausalLM(config).eval()
    tensors = {name: tensor for name, tensor in llm.state_dict().items() if name != "lm_head.weight"}
    tensors |= {f"model.speech_encoder.{name}": tensor for name, tensor in openai_encoder(whisper).items()}
    tensors |= {f"model.speech_projector.{name}": tensor for name, tensor in draw_projector(128).items()}
    tensors["speech_generator.model.lm_head.weight"] = torch.ones(3, 3)
    settings = {name: value for name, value in config.to_dict().items() if name != "rope_parameters"} | {
        "model_type": "omni2_speech2s_qwen2",
        "rope_theta": 1e6,
        "speech_encoder": "models/large-v3.pt",
        "speech_encoder_type": "whisper",
        "speech_encoder_ds_rate": STACK,
        "speech_generator": {"vocab_size": 3},
    }
    folder = write_release(tmp_path / "release", settings, tensors)
    tokenizer.save_pretrained(folder)
    return folder, whisper, llm


def test_llama_omni_2_matches_the_reference_computation(
    release_2: tuple[Path, WhisperModel, Qwen2ForCausalLM], sample: lsm_probe.Sample, mel: Tensor, tmp_path: Path
) -> None:
    folder, whisper, llm = release_2
    save_openai(tmp_path / "models" / "large-v3.pt", make_whisper(128, 2, seed=9))  # has no effect, unlike in the first
    assert find_system(folder) == "llama_omni2"
    model = lsm_probe.load(folder, device="cpu", dtype="float32")
    speech = speech_by_hand(whisper, mel)
    source: Any = sample.read_source("speech")
    torch.testing.assert_close(model.encode_speech(source), speech, rtol=0, atol=2e-5)
    check_logits(model, llm, speech, sample)
    asked = "<|im_start|>user\n*\nWrite down what the speaker says.<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(model, sample).endswith(asked)


def test_the_llama_omni_2_released_template_has_speech_and_no_instruction(
    release_2: tuple[Path, WhisperModel, Qwen2ForCausalLM], sample: lsm_probe.Sample, mel: Tensor
) -> None:
    folder, whisper, llm = release_2
    model = lsm_probe.load(folder, device="cpu", dtype="float32", template="llama_omni2_released")
    assert prompt_text(model, sample).endswith("<|im_start|>user\n*<|im_end|>\n<|im_start|>assistant\n")
    check_logits(model, llm, speech_by_hand(whisper, mel), sample)


def test_an_encoder_option_for_llama_omni_2_is_refused(
    release_2: tuple[Path, WhisperModel, Qwen2ForCausalLM], tiny_encoder_folder: Path
) -> None:
    with pytest.raises(InputError, match=r"--encoder .* has its own; leave the option out"):
        lsm_probe.load(release_2[0], device="cpu", encoder=tiny_encoder_folder)


@pytest.mark.parametrize("template", ["llama_omni2_released", "llasm_released"])
def test_templates_with_speech_only_have_no_instruction(template: str) -> None:
    assert not find_template(template).has_instruction
    assert find_template(template.removesuffix("_released")).has_instruction


def test_llama_omni_2_may_have_its_tokenizer_in_two_files(
    release_2: tuple[Path, WhisperModel, Qwen2ForCausalLM], sample: lsm_probe.Sample, tmp_path: Path
) -> None:
    folder = release_2[0]
    expected = lsm_probe.load(folder, device="cpu", dtype="float32").prompt_ids(sample)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {str(token["id"]): token for token in content["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").unlink()
    model = lsm_probe.load(folder, device="cpu", dtype="float32")
    assert model.prompt_ids(sample) == expected
    model.save(tmp_path / "imported")
    assert lsm_probe.load(tmp_path / "imported", device="cpu").prompt_ids(sample) == expected
