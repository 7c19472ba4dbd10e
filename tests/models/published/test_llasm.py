"""LLaSM: a random release compared with its computation written out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

import lsm_probe
from lsm_probe.assets.whisper import openai_config
from lsm_probe.errors import InputError
from lsm_probe.models.published import find_system
from lsm_probe.runner.prepared_samples import check_samples

STATES = 7
VOCABULARY = 448
SYSTEM = "You are a helpful language and speech assistant."


def draw_projector() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "weight": torch.randn(48, 32, generator=generator) * 0.3,
        "bias": torch.randn(48, generator=generator) * 0.3,
    }


@pytest.fixture
def release(
    tmp_path: Path,
    tiny_llm_folder: Path,
    write_release: Callable[[Path, Mapping[str, Any], Mapping[str, Tensor]], Path],
    save_sentencepiece: Callable[[Path], None],
) -> Callable[..., Path]:
    """`release(left_out)`: the folder of a release whose tokenizer.model lacks the three speech tokens; `left_out`
    is removed from its settings."""

    def make(*left_out: str, **settings: Any) -> Path:
        llm = LlamaForCausalLM.from_pretrained(tiny_llm_folder)
        config = llm.config.to_dict() | {
            "model_type": "llaaa",
            "architectures": ["LlaaaLlamaForCausalLM"],
            "mm_audio_tower": "openai/whisper-large-v2",
            "mm_hidden_size": 32,
            "use_mm_proj": True,
            "audio_token_len": STATES,
        }
        projector = {f"model.mm_projector.{name}": tensor for name, tensor in draw_projector().items()}
        config = {name: value for name, value in config.items() if name not in left_out} | settings
        folder = write_release(tmp_path / "release", config, {**llm.state_dict(), **projector})
        save_sentencepiece(folder)
        return folder

    return make


@torch.no_grad()
def speech_by_hand(whisper: Path, mel: Tensor, states: int = STATES) -> Tensor:
    model = WhisperModel.from_pretrained(whisper).eval()
    start = torch.full((1, states), model.config.decoder_start_token_id)
    made = model(mel, decoder_input_ids=start).last_hidden_state[0]
    projector = draw_projector()
    return made @ projector["weight"].T + projector["bias"]


@pytest.mark.parametrize("template", ["llasm", "llasm_released"])
def test_a_release_matches_the_reference_computation(
    release: Callable[..., Path],
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    sample: lsm_probe.Sample,
    mel: Tensor,
    template: str,
) -> None:
    folder = release()
    assert find_system(folder) == "llasm"
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "encoder": tiny_encoder_folder}
    model = lsm_probe.load(folder, **options, template=template)
    assert lsm_probe.load(folder, **options).template.name == "llasm"
    speech = speech_by_hand(tiny_encoder_folder, mel)
    ids = torch.tensor(model.prompt_ids(sample))
    is_speech = ids == VOCABULARY
    llm = LlamaForCausalLM.from_pretrained(tiny_llm_folder)
    embedded = llm.get_input_embeddings()(ids.masked_fill(is_speech, 0)).detach()
    embedded[is_speech] = speech
    expected = llm(inputs_embeds=embedded[None]).logits[0].detach()
    torch.testing.assert_close(model.logits(sample), expected, rtol=0, atol=5e-5)
    words = "Write down what the speaker says." if template == "llasm" else SYSTEM
    assert model.tokenizer.decode(ids[~is_speech]).count(words) == 2


def test_speech_tokens_get_the_ids_after_the_vocabulary(
    release: Callable[..., Path], tiny_encoder_folder: Path, sample: lsm_probe.Sample
) -> None:
    model = lsm_probe.load(release(), device="cpu", dtype="float32", encoder=tiny_encoder_folder)
    tokens = model.tokenizer.convert_tokens_to_ids(["<au_patch>", "<au_start>", "<au_end>"])
    assert tokens == [310, 311, 312]
    ids = model.prompt_ids(sample)
    first = ids.index(VOCABULARY)
    # Both newlines before the speech, and two spaces after it: one of the prompt, one after a special token.
    newline = model.tokenizer.convert_tokens_to_ids("<0x0A>")
    assert ids[first - 3 : first] == [newline, newline, 311]
    space = model.tokenizer.convert_tokens_to_ids("▁")
    assert ids[first + STATES : first + STATES + 3] == [312, space, space]


def test_speech_tokens_that_the_release_lists_as_plain_tokens_become_special(
    release: Callable[..., Path], tiny_encoder_folder: Path, sample: lsm_probe.Sample, tmp_path: Path
) -> None:
    folder = release()
    expected = lsm_probe.load(folder, device="cpu", encoder=tiny_encoder_folder).prompt_ids(sample)
    added = {"<au_end>": 312, "<au_patch>": 310, "<au_start>": 311}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    model = lsm_probe.load(folder, device="cpu", encoder=tiny_encoder_folder)
    assert model.prompt_ids(sample) == expected
    model.save(tmp_path / "imported")
    imported = lsm_probe.load(tmp_path / "imported", device="cpu")
    assert imported.prompt_ids(sample) == expected
    assert torch.equal(imported.logits(sample), model.logits(sample))


def test_the_decoder_computes_64_states_by_default(
    release: Callable[..., Path], tiny_encoder_folder: Path, sample: lsm_probe.Sample, mel: Tensor
) -> None:
    model = lsm_probe.load(release("audio_token_len"), device="cpu", dtype="float32", encoder=tiny_encoder_folder)
    source: Any = sample.read_source("speech")
    expected = speech_by_hand(tiny_encoder_folder, mel, states=64)
    torch.testing.assert_close(model.encode_speech(source), expected, rtol=0, atol=2e-5)


def test_a_template_without_an_instruction_cannot_be_measured(
    release: Callable[..., Path], tiny_encoder_folder: Path, sample: lsm_probe.Sample
) -> None:
    model = lsm_probe.load(release(), device="cpu", encoder=tiny_encoder_folder, template="llasm_released")
    source: Any = sample.read_source("speech")
    for refused in (
        lambda: check_samples(model, [sample], None),
        lambda: lsm_probe.attention(model, [sample], max_new_tokens=1),
        lambda: model.encode(sample.instruction, source),
    ):
        with pytest.raises(InputError, match="template 'llasm_released' has no instruction"):
            refused()
    assert model.encode_speech(source).shape == (STATES, 48)


def test_a_missing_whisper_option_is_reported(release: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"give it with --encoder. It is the Whisper .* calls openai/whisper-large-v2"):
        lsm_probe.load(release(), device="cpu")


def test_whisper_at_the_path_in_the_config_is_found(release: Callable[..., Path], tiny_encoder_folder: Path) -> None:
    model = lsm_probe.load(release(mm_audio_tower=str(tiny_encoder_folder)), device="cpu")
    assert model.identity.encoder is not None


def test_whisper_of_another_width_is_refused(
    release: Callable[..., Path], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    config = WhisperConfig.from_pretrained(tiny_encoder_folder, d_model=64)
    WhisperModel(config).save_pretrained(tmp_path / "wide")
    WhisperFeatureExtractor().save_pretrained(tmp_path / "wide")
    with pytest.raises(InputError, match=r"--encoder .*wide has hidden states 64 wide, .* trained with 32"):
        lsm_probe.load(release(), device="cpu", encoder=tmp_path / "wide")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(
    release: Callable[..., Path], tiny_encoder_folder: Path
) -> None:
    with pytest.raises(InputError, match=r"has 313 tokens .* embeddings for 312"):
        lsm_probe.load(release(vocab_size=312), device="cpu", encoder=tiny_encoder_folder)


@pytest.mark.parametrize(("vocabulary", "start"), [(51864, 50257), (51865, 50258), (51866, 50258)])
def test_the_decoder_start_token_of_an_openai_file_follows_from_its_vocabulary_size(
    vocabulary: int, start: int
) -> None:
    names = ("n_mels", "n_audio_ctx", "n_text_ctx", "n_audio_state", "n_audio_layer", "n_audio_head")
    dims = dict.fromkeys((*names, "n_text_state", "n_text_layer", "n_text_head"), 4)
    assert openai_config(dims | {"n_vocab": vocabulary}).decoder_start_token_id == start
