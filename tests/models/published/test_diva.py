"""DiVA: random releases compared with a rewrite of the forward pass. No reference of the original is available."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor, WhisperModel

import lsm_probe
from lsm_probe.errors import InputError

INSTRUCTION = "Write down what the speaker says."
QUERIES = 12


@pytest.fixture
def parts(tiny_encoder_folder: Path, tiny_llm_folder: Path) -> dict[str, Path]:
    return {"encoder": tiny_encoder_folder, "llm": tiny_llm_folder}


@pytest.fixture
def release(tmp_path: Path, save_encoder: Callable[..., Path]) -> Path:
    """A release whose decoder weights differ from those of the Whisper given as its encoder."""
    decoder = WhisperModel.from_pretrained(save_encoder(tmp_path / "other", seed=9)).decoder.state_dict()
    torch.manual_seed(2)
    folder = tmp_path / "diva"
    folder.mkdir()
    tensors = {f"connector.{name}": tensor.clone() for name, tensor in decoder.items()}
    tensors |= {
        "query_tokens": torch.randn(QUERIES, 32),
        "projection.weight": 0.3 * torch.randn(32, 48),  # [in, out]
        "projection.bias": torch.randn(48),
    }
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["DiVAModel"],
        "auto_map": {"AutoModel": "modeling_diva.DiVAModel"},
        "reference_encoder": "openai/whisper-large-v3",
        "reference_decoder": "meta-llama/Meta-Llama-3-8B-Instruct",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change(release: Path, **changes: Tensor | None) -> None:
    tensors = {name: t for name, t in (load_file(release / "model.safetensors") | changes).items() if t is not None}
    save_file(tensors, release / "model.safetensors")


def test_a_release_matches_the_reference_computation(
    release: Path, parts: dict[str, Path], clip: Callable[..., Path], tmp_path: Path
) -> None:
    sample = lsm_probe.Sample(id="a", instruction=INSTRUCTION, audio=str(clip(tmp_path / "a.wav", 1.3)), text="words")
    checkpoint: Any = lsm_probe.load(release, device="cpu", dtype="float32", **parts)
    source: Any = sample.read_source("speech")
    tensors = load_file(release / "model.safetensors")

    whisper = WhisperModel.from_pretrained(parts["encoder"]).eval()
    own = {name.removeprefix("connector."): t for name, t in tensors.items() if name.startswith("connector.")}
    mel = WhisperFeatureExtractor()(source, sampling_rate=16_000, return_tensors="pt").input_features
    llm = AutoModelForCausalLM.from_pretrained(parts["llm"])
    tokenizer = AutoTokenizer.from_pretrained(parts["llm"])
    chat = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": "<|audio|>"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    before, after = (tokenizer(text, add_special_tokens=False).input_ids for text in rendered.split("<|audio|>"))
    with torch.no_grad():
        states = whisper.encoder(mel).last_hidden_state
        whisper.decoder.load_state_dict(own)
        hidden = whisper.decoder(inputs_embeds=tensors["query_tokens"][None], encoder_hidden_states=states)[0][0]
        speech = hidden @ tensors["projection.weight"] + tensors["projection.bias"]
        words = llm.get_input_embeddings()
        embedded = torch.cat([words(torch.tensor(before)), speech, words(torch.tensor(after))])
        logits = llm(inputs_embeds=embedded[None]).logits[0]

    placeholder = checkpoint.processor.audio_token_id
    assert checkpoint.prompt_ids(sample) == [*before, *[placeholder] * QUERIES, *after]
    torch.testing.assert_close(checkpoint.encode_speech(source), speech, rtol=0, atol=1e-5)
    torch.testing.assert_close(checkpoint.logits(sample), logits, rtol=0, atol=2e-5)
    assert checkpoint.identity.published == "diva"
    with pytest.raises(InputError, match="they have no times"):
        checkpoint.speech_token_times(16_000)

    checkpoint.save(tmp_path / "saved")
    again: Any = lsm_probe.load(tmp_path / "saved", device="cpu", dtype="float32")
    assert again.model.config.decoder_input == "learned"
    assert torch.equal(again.logits(sample), checkpoint.logits(sample))


def test_missing_parts_are_named(release: Path, parts: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"does not hold its encoder: .* openai/whisper-large-v3"):
        lsm_probe.load(release, device="cpu", llm=parts["llm"])
    with pytest.raises(InputError, match=r"does not hold its llm: .* meta-llama/Meta-Llama-3-8B-Instruct"):
        lsm_probe.load(release, device="cpu", encoder=parts["encoder"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_tokens": torch.zeros(QUERIES, 40)}, "hidden states 32 wide, and the connector was trained with 40"),
        ({"projection.weight": torch.zeros(32, 50)}, "hidden states 48 wide, and the connector was trained with 50"),
        ({"projection.weight": torch.zeros(128, 48)}, r"another shape in 1 tensor \(multi_modal_projector.linear"),
        ({"projection.weight": None}, "lacks projection.weight"),
        ({"connector.layer_norm.weight": None}, r"lack 1 tensor \(audio_tower.decoder.layer_norm.weight\)"),
        ({"encoder.conv1.bias": torch.zeros(32)}, r"holds 1 tensor \(encoder.conv1.bias\)"),
        ({"query_tokens": torch.zeros(449, 32)}, "decoder_states 449: this Whisper's decoder has 448 positions"),
    ],
)
def test_unexpected_tensors_are_refused(
    release: Path, parts: dict[str, Path], changes: dict[str, Tensor | None], words: str
) -> None:
    change(release, **changes)
    with pytest.raises(InputError, match=words):
        lsm_probe.load(release, device="cpu", **parts)


def test_an_llm_without_an_eos_token_is_refused(release: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    llm = shutil.copytree(parts["llm"], tmp_path / "llm")
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(llm)
    with pytest.raises(InputError, match=r"no token is known that ends a response"):
        lsm_probe.load(release, device="cpu", encoder=parts["encoder"], llm=llm)
