"""SLAM-LLM: random releases compared with their computation in plain torch. No reference of the original is
available."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor, WhisperModel

import lsm_probe
from lsm_probe.errors import InputError

INSTRUCTION = "Transcribe speech to text."
Q_PROJ = "llm.base_model.model.model.layers.1.self_attn.q_proj"


def draw_projector() -> dict[str, Tensor]:
    torch.manual_seed(3)
    shapes = {"linear1.weight": (24, 160), "linear1.bias": (24,), "linear2.weight": (48, 24), "linear2.bias": (48,)}
    return {f"encoder_projector.{name}": 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def draw_adapter() -> dict[str, Tensor]:
    torch.manual_seed(4)
    return {
        f"{Q_PROJ}.lora_A.default.weight": torch.randn(2, 48),
        f"{Q_PROJ}.lora_B.default.weight": torch.randn(48, 2),
    }


@pytest.fixture
def parts(tiny_encoder_folder: Path, tiny_llm_folder: Path) -> dict[str, Path]:
    return {"encoder": tiny_encoder_folder, "llm": tiny_llm_folder}


@pytest.fixture
def make_release(tmp_path: Path) -> Callable[..., Path]:
    """`make_release(tensors, settings)`: the folder of an epoch inside that of its run."""

    def make(tensors: dict[str, Tensor], settings: str | None = None) -> Path:
        folder = tmp_path / "run" / "asr_epoch_1_step_1000"
        folder.mkdir(parents=True)
        torch.save(tensors, folder / "model.pt")
        if settings is not None:
            (folder.parent / ".hydra").mkdir()
            (folder.parent / ".hydra" / "config.yaml").write_text(settings)
        return folder

    return make


@pytest.mark.parametrize("alpha", [None, 32], ids=["projector alone", "with adapters"])
def test_a_release_matches_the_reference_computation(
    make_release: Callable[..., Path],
    parts: dict[str, Path],
    clip: Callable[..., Path],
    tmp_path: Path,
    alpha: int | None,
) -> None:
    tensors = draw_projector() | ({} if alpha is None else draw_adapter())
    settings = f"train_config: {{peft_config: {{lora_alpha: {alpha}}}}}\nmodel_config: {{encoder_name: whisper}}\n"
    folder = make_release(tensors, None if alpha is None else settings)
    sample = lsm_probe.Sample(id="a", instruction=INSTRUCTION, audio=str(clip(tmp_path / "a.wav", 1.3)), text="words")
    checkpoint: Any = lsm_probe.load(folder, device="cpu", dtype="float32", **parts)

    source: Any = sample.read_source("speech")
    mel = WhisperFeatureExtractor()(source, sampling_rate=16_000, return_tensors="pt").input_features
    projector = draw_projector()
    weight, bias = ([projector[f"encoder_projector.linear{i}.{kind}"] for i in (1, 2)] for kind in ("weight", "bias"))
    llm = AutoModelForCausalLM.from_pretrained(parts["llm"])
    tokenizer = AutoTokenizer.from_pretrained(parts["llm"])
    text = tokenizer("<s>USER: Transcribe speech to text. \n ASSISTANT:", add_special_tokens=False).input_ids
    with torch.no_grad():
        states = WhisperModel.from_pretrained(parts["encoder"]).encoder(mel).last_hidden_state[0]
        speech = (states.reshape(300, 160) @ weight[0].T + bias[0]).relu() @ weight[1].T + bias[1]
        if alpha is not None:
            a, b = (tensors[f"{Q_PROJ}.lora_{half}.default.weight"] for half in "AB")
            llm.model.layers[1].self_attn.q_proj.weight += alpha / 2 * b @ a
        embedded = torch.cat([speech, llm.get_input_embeddings()(torch.tensor(text))])
        logits = llm(inputs_embeds=embedded[None]).logits[0]
    assert text[0] == tokenizer.bos_token_id
    assert checkpoint.prompt_ids(sample) == [*[checkpoint.processor.audio_token_id] * 300, *text]
    torch.testing.assert_close(checkpoint.encode_speech(source), speech, rtol=0, atol=1e-5)
    torch.testing.assert_close(checkpoint.logits(sample), logits, rtol=0, atol=2e-5)
    assert checkpoint.identity.published == "slam_llm"

    checkpoint.save(tmp_path / "saved")
    again = lsm_probe.load(tmp_path / "saved", device="cpu", dtype="float32")
    assert torch.equal(again.logits(sample), checkpoint.logits(sample))


def test_the_path_of_the_file_is_accepted(make_release: Callable[..., Path], parts: dict[str, Path]) -> None:
    folder = make_release(draw_projector())
    assert lsm_probe.load(folder / "model.pt", device="cpu", **parts).identity.published == "slam_llm"


def test_trained_encoder_and_llm_weights_replace_those_of_the_given_parts(
    make_release: Callable[..., Path], parts: dict[str, Path]
) -> None:
    trained = {"encoder.blocks.1.attn.query.weight": torch.randn(32, 32), "llm.model.norm.weight": torch.randn(48)}
    checkpoint: Any = lsm_probe.load(make_release(draw_projector() | trained), device="cpu", dtype="float32", **parts)
    queries = checkpoint.model.audio_tower.layers[1].self_attn.q_proj.weight
    assert torch.equal(queries, trained["encoder.blocks.1.attn.query.weight"])
    assert torch.equal(checkpoint.llm.model.norm.weight, trained["llm.model.norm.weight"])


def test_missing_parts_are_named(make_release: Callable[..., Path], parts: dict[str, Path]) -> None:
    folder = make_release(draw_projector())
    with pytest.raises(InputError, match=r"does not hold its encoder: give it with --encoder\. It is the Whisper"):
        lsm_probe.load(folder, device="cpu", llm=parts["llm"])
    with pytest.raises(InputError, match=r"does not hold its llm: give it with --llm\. It is the LLM"):
        lsm_probe.load(folder, device="cpu", encoder=parts["encoder"])


LINEAR_1, LINEAR_2 = "encoder_projector.linear1.weight", "encoder_projector.linear2.weight"


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"encoder_projector.conv1d.weight": torch.zeros(2)}, None, "projector 'cov1d-linear'"),
        ({"encoder_projector.qformer.layernorm.weight": torch.zeros(2)}, None, "projector 'q-former'"),
        (draw_adapter(), None, r"lora_alpha is not known: write that of the training run into .*config\.yaml"),
        ({f"{Q_PROJ}.lora_A.default.weight": torch.zeros(2, 48)}, "alpha", r"lacks .*layers\.1.*q_proj\.lora_B"),
        (draw_adapter() | {f"{Q_PROJ}.lora_B.default.weight": torch.zeros(40, 2)}, "alpha", "do not fit a weight"),
        ({}, "model_config: {encoder_name: wavlm}", "encoder_name 'wavlm': only checkpoints with Whisper"),
        ({LINEAR_1: torch.zeros(24, 150)}, None, "32 wide, and the projector reads 150 values, those of 5 states"),
        ({LINEAR_2: torch.zeros(50, 24)}, None, "48 wide, and the connector was trained with 50"),
        ({LINEAR_2: torch.zeros(48, 20)}, None, r"another shape in 1 tensor \(multi_modal_projector.linear_2.weight"),
        ({"encoder_projector.linear3.weight": torch.zeros(2)}, None, r"holds 1 tensor \(encoder_projector.linear3"),
        ({"encoder_projector.linear2.bias": None}, None, r"lack 1 tensor \(multi_modal_projector.linear_2.bias\)"),
        ({LINEAR_2: None}, None, "lacks linear1 or linear2"),
    ],
)
def test_unsupported_tensors_and_settings_are_refused(
    make_release: Callable[..., Path],
    parts: dict[str, Path],
    changes: dict[str, Tensor | None],
    settings: str | None,
    words: str,
) -> None:
    changed = draw_projector() | changes
    tensors = {name: tensor for name, tensor in changed.items() if tensor is not None}
    settings = "train_config: {peft_config: {lora_alpha: 32}}" if settings == "alpha" else settings
    with pytest.raises(InputError, match=words):
        lsm_probe.load(make_release(tensors, settings), device="cpu", **parts)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk", b"\x80\x02}q\x00."], ids=repr)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match="it is a file, and damaged or of a system that cannot be read"):
        lsm_probe.load(tmp_path / "model.pt", device="cpu")
    with pytest.raises(InputError, match=r"the folder has no config\.json"):
        lsm_probe.load(tmp_path, device="cpu")


def test_a_text_llm_with_a_model_pt_is_not_recognised_as_a_release(tiny_llm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llm_folder, tmp_path / "llm")
    torch.save(draw_projector(), folder / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt beside model\.safetensors, .* in it would not be used"):
        lsm_probe.load(folder, device="cpu")


def test_the_downsampling_rate_is_read_from_the_settings(
    make_release: Callable[..., Path], parts: dict[str, Path]
) -> None:
    tensors = draw_projector() | {LINEAR_1: torch.randn(24, 96)}
    folder = make_release(tensors, "model_config: {encoder_projector_ds_rate: 3}")
    checkpoint: Any = lsm_probe.load(folder, device="cpu", **parts)
    assert checkpoint.processor.count_speech_tokens(16_000) == 500
