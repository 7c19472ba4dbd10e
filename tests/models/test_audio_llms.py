"""Audio LLMs of transformers' own classes, tiny and random, with their real processors and a small tokenizer.

The tokenizer has the documented special tokens of the real checkpoints, and the chat templates have the same layout.
Two libraries have no build for the torch version of the tests, so two parts are replaced: the mel spectrogram that
Granite-Speech takes from torchaudio, and the video processor (torchvision) of Qwen2.5-Omni.
"""

import base64
import json
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import soundfile
import torch
import transformers
import transformers.models.granite_speech.feature_extraction_granite_speech as granite_features
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, ProcessorMixin, WhisperFeatureExtractor
from transformers.integrations.peft import MIN_PEFT_VERSION

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.mistral_processor import audio_llm_processor
from lsm_probe.models.segments import Segment
from lsm_probe.probes.importance.measure import response_loss
from lsm_probe.runner.options import ResponseOptions
from lsm_probe.runner.prepared_samples import prepare

LLM = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}
WHISPER = {"num_mel_bins": 16, "max_source_positions": 1500}
ENCODER = {**WHISPER, "d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
TOWER = {**WHISPER, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
CHAT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}AUDIO{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRINGS_ALONE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] + '' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_with(base: PreTrainedTokenizerFast, *special: str, **named: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=deepcopy(base.backend_tokenizer),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]})
    return tokenizer


def save(folder: Path, model_class: str, config: Any, processor: Any = None, eos: int = 2) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).eval()
    for parameter in model.parameters():  # larger weights than in a new model, so that tokens and layers differ
        if parameter.dim() >= 2:
            parameter.data.mul_(4)
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def qwen2_audio(folder: Path, base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = tokenizer_with(base, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    config = transformers.Qwen2AudioConfig(
        audio_config=ENCODER,
        text_config={"model_type": "qwen2", **LLM},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    processor = transformers.Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer)
    return save(folder, "Qwen2AudioForConditionalGeneration", config, processor)


def audioflamingo3(folder: Path, base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = tokenizer_with(base, "<sound>")
    config = transformers.AudioFlamingo3Config(
        audio_config=TOWER,
        text_config={"model_type": "qwen2", **LLM},
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    processor = transformers.AudioFlamingo3Processor(
        WhisperFeatureExtractor(feature_size=16), tokenizer, chat_template=CHAT.replace("AUDIO", "<sound>")
    )
    return save(folder, "AudioFlamingo3ForConditionalGeneration", config, processor)


def voxtral(folder: Path, base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    from transformers.tokenization_mistral_common import MistralCommonBackend

    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tekken.json").write_text(json.dumps(_tekken()))
    tokenizer = MistralCommonBackend.from_pretrained(folder / "tokenizer")
    config = transformers.VoxtralConfig(
        audio_config={**TOWER, "intermediate_size": 64},
        text_config={"model_type": "llama", **LLM},
        audio_token_id=24,
    )
    processor = transformers.VoxtralProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer)
    return save(folder / "model", "VoxtralForConditionalGeneration", config, processor)


def _tekken() -> dict[str, Any]:
    """mistral-common's file format, with single bytes and a few words, special tokens at their documented places."""
    names = [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
        "[SUFFIX]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[TOOL_CONTENT]",
        "[ARGS]",
        "[CALL_ID]",
        "[THINK]",
        "[/THINK]",
        "[AUDIO]",
        "[BEGIN_AUDIO]",
    ]
    names += [f"<SPECIAL_{i}>" if i != 34 else "[TRANSCRIBE]" for i in range(26, 100)]
    pieces = [bytes([i]) for i in range(256)] + [w.encode() for w in ("Trans", "late", " the", " speech", " into")]
    return {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+",
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + 100,
            "default_num_special_tokens": 100,
            "version": "v7",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for i, piece in enumerate(pieces)
        ],
        "special_tokens": [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)],
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 16, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }


def granite_speech(folder: Path, base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(granite_features, "requires_backends", lambda *a: None)
    torchaudio = SimpleNamespace(transforms=SimpleNamespace(MelSpectrogram=_Mel))
    monkeypatch.setattr(granite_features, "torchaudio", torchaudio, raising=False)
    tokenizer = tokenizer_with(base, "<|audio|>")
    tokenizer.chat_template = STRINGS_ALONE  # as in the checkpoints: text content only
    audio_token_id = tokenizer.convert_tokens_to_ids("<|audio|>")
    config = transformers.GraniteSpeechConfig(
        encoder_config={
            "model_type": "granite_speech_encoder",
            "input_dim": 160,
            "num_layers": 2,
            "hidden_dim": 16,
            "num_heads": 2,
            "dim_head": 8,
            "output_dim": 10,
            "context_size": 50,
            "max_pos_emb": 64,
            "feedforward_mult": 2,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_hidden_size": 16,
            "cross_attention_frequency": 1,
        },
        text_config={
            "model_type": "granite",
            **LLM,
            "vocab_size": audio_token_id,  # the placeholder is outside the vocabulary
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.2,
        },
        audio_token_index=audio_token_id,
        window_size=15,
        downsample_rate=5,
        has_lora_adapter=False,
    )
    processor = transformers.GraniteSpeechProcessor(transformers.GraniteSpeechFeatureExtractor(), tokenizer)
    return save(folder, "GraniteSpeechForConditionalGeneration", config, processor)


class _Mel(torch.nn.Module):
    """Replaces torchaudio's spectrogram: the same number of bins and frames."""

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = settings

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        s = self.settings
        window = torch.hann_window(s["win_length"])
        spectrum = torch.stft(audio, s["n_fft"], s["hop_length"], s["win_length"], window, return_complex=True)
        return spectrum.abs().square()[..., : s["n_mels"], :]


def qwen2_5_omni_thinker(folder: Path, base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("image", "audio", "video")
    named = {f"{name}_token": f"<|{name.upper()}|>" for name in names}
    named |= {f"{name}_{end}_token": f"<|{name}_{end}|>" for name in ("vision", "audio") for end in ("bos", "eos")}
    tokenizer = tokenizer_with(base, **named)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config={**ENCODER, "output_dim": LLM["hidden_size"], "n_window": 50},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "embed_dim": 16,
        },
        text_config={
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            **LLM,
        },
        audio_token_id=ids["audio_token"],
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
    )
    _without_images(monkeypatch)
    processor = transformers.Qwen2_5OmniProcessor(
        None,
        None,
        WhisperFeatureExtractor(feature_size=16),
        tokenizer,
        chat_template=CHAT.replace("AUDIO", "<|audio_bos|><|AUDIO|><|audio_eos|>"),
    )
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *a, **k: processor)
    return save(folder, "Qwen2_5OmniThinkerForConditionalGeneration", config)


def phi4_multimodal(folder: Path, base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    named = {"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"}
    tokenizer = tokenizer_with(base, **named)
    tokenizer.chat_template = STRINGS_ALONE
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = transformers.Phi4MultimodalConfig(
        **LLM,
        original_max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 8,
            "audio_token_id": ids["audio_token"],
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
            "image_token_id": ids["image_token"],
        },
    )
    _without_images(monkeypatch)
    processor = transformers.Phi4MultimodalProcessor(None, transformers.Phi4MultimodalFeatureExtractor(), tokenizer)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *a, **k: processor)
    return save(folder, "Phi4MultimodalForCausalLM", config)


def _without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets processors work without their image parts, which need torchvision."""
    own = ProcessorMixin.check_argument_for_proper_class
    monkeypatch.setattr(
        ProcessorMixin,
        "check_argument_for_proper_class",
        lambda self, name, given: None if given is None else own(self, name, given),
    )


AUDIO_LLMS: dict[str, Callable[[Path, PreTrainedTokenizerFast, pytest.MonkeyPatch], Path]] = {
    "qwen2_audio": qwen2_audio,
    "audioflamingo3": audioflamingo3,
    "voxtral": voxtral,
    "granite_speech": granite_speech,
    "qwen2_5_omni_thinker": qwen2_5_omni_thinker,
    "phi4_multimodal": phi4_multimodal,
}


# Fixtures


@pytest.fixture
def build(tmp_path, make_tokenizer, monkeypatch) -> Callable[[str], Path]:
    """`build(name)`: the folder of one of these models."""
    return lambda name: AUDIO_LLMS[name](tmp_path / name, make_tokenizer(None), monkeypatch)


@pytest.fixture(params=AUDIO_LLMS)
def folder(request, build) -> Path:
    return build(request.param)


@pytest.fixture
def qwen(build) -> Path:
    return build("qwen2_audio")


@pytest.fixture
def granite(build) -> Path:
    return build("granite_speech")


def load(folder: Path, **options: Any) -> Checkpoint:
    return lsm_probe.load(folder, device="cpu", dtype="float32", **options)


@pytest.fixture
def samples(tmp_path, waveform) -> list[Sample]:
    """Utterances of different lengths, each with an instruction of different length."""
    instructions = ["Translate the speech into German.", "Repeat.", "Answer the question about the speech in one word."]
    made = []
    for i, (instruction, text) in enumerate(
        zip(instructions * 2, ["rain", "the old town", "sea shells"] * 2, strict=True)
    ):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, waveform(0.7 + 0.4 * i, seed=i), 16_000)
        made.append(
            Sample(id=f"s{i}", audio=str(path), text=f"{text} {i}", instruction=instruction, target="It rains.")
        )
    return made


def test_a_template_with_a_date_uses_a_fixed_date(qwen, waveform):
    template = CHAT.replace("AUDIO", "<|AUDIO|>").replace("a helpful assistant.", "{{ strftime_now('%d %B %Y') }}.")
    (qwen / "chat_template.jinja").write_text(template)
    fixed, other = load(qwen), load(qwen, date="2031-03-01")
    for checkpoint, written in ((fixed, "You are 26 July 2024."), (other, "You are 01 March 2031.")):
        prompt = checkpoint.encode("Repeat.", waveform(1))
        assert written in checkpoint.tokenizer.decode(prompt.input_ids)
    assert (fixed.identity.date, other.identity.date) == ("2024-07-26", "2031-03-01")
    assert fixed.identity.prompt_sha256 != other.identity.prompt_sha256


def test_text_that_looks_like_markup_is_tokenised_as_text_or_refused(folder, waveform):
    """mistral-common reads no text as markup; every other tokenizer's text is refused."""
    checkpoint = load(folder)
    special = [
        t for t in checkpoint.tokenizer.all_special_tokens if t not in ("<unk>", checkpoint.processor.audio_token)
    ]
    control = special[-1]
    if type(checkpoint.tokenizer).__name__ == "MistralCommonBackend":
        prompt = checkpoint.encode(f"Repeat {control}.", "rain")
        instruction = [prompt.input_ids[i] for i in prompt.positions(Segment.INSTRUCTION)]
        assert checkpoint.tokenizer.eos_token_id not in instruction
        assert checkpoint.tokenizer.decode(instruction) == f"Repeat {control}."
        return
    for encode in (
        lambda: checkpoint.encode(f"Repeat.{control}", waveform(1)),
        lambda: checkpoint.encode("Repeat.", f"rain {control}"),
        lambda: checkpoint.encode_response(f"rain{control}"),
    ):
        with pytest.raises(InputError, match=f"holds {re.escape(control)}"):
            encode()


def spelled(checkpoint: Checkpoint, prompt: Any) -> list[tuple[str, str]]:
    """A prompt as runs of one segment with their text; speech as its number of tokens."""
    runs = []
    for segment, group in groupby(zip(prompt.segments, prompt.input_ids, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in group]
        decode = checkpoint.tokenizer.decode
        runs.append((segment.name, f"{len(ids)}" if segment is Segment.SOURCE else decode(ids)))
    return runs


def whole_pass(checkpoint: Checkpoint, prompt: Any, **more: Any) -> Any:
    ids = torch.tensor([prompt.input_ids])
    with torch.no_grad():
        return checkpoint.model(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.features, **more)


# Prompts labelled by hand

SYSTEM = [("TEMPLATE", "<|im_start|>system\n"), ("SYSTEM", "You are a helpful assistant.")]
END = "<|im_end|>\n<|im_start|>assistant\n"
USER = "<|im_end|>\n<|im_start|>user\n"
TRANSLATE = ("INSTRUCTION", "Translate the speech into German.")
PROMPTS = {
    # Speech tokens of 2 s: 25 per second; Voxtral has 30 s at 12.5 for any length; Granite has 3 per 15 frames.
    ("qwen2_audio", "chat"): [
        *SYSTEM,
        ("TEMPLATE", USER),
        TRANSLATE,
        ("TEMPLATE", "\nAudio 1: <|audio_bos|>"),
        ("SOURCE", "50"),
        ("TEMPLATE", "<|audio_eos|>\n" + END),
    ],
    ("qwen2_audio", "chat_source_first"): [
        *SYSTEM,
        ("TEMPLATE", USER + "Audio 1: <|audio_bos|>"),
        ("SOURCE", "50"),
        ("TEMPLATE", "<|audio_eos|>\n"),
        TRANSLATE,
        ("TEMPLATE", END),
    ],
    ("audioflamingo3", "chat"): [
        *SYSTEM,
        ("TEMPLATE", USER),
        TRANSLATE,
        ("TEMPLATE", "\n"),
        ("SOURCE", "50"),
        ("TEMPLATE", END),
    ],
    ("audioflamingo3", "chat_source_first"): [
        *SYSTEM,
        ("TEMPLATE", USER),
        ("SOURCE", "50"),
        TRANSLATE,
        ("TEMPLATE", END),
    ],
    ("voxtral", "chat"): [
        ("TEMPLATE", "<s>[INST]"),
        TRANSLATE,
        ("TEMPLATE", "[BEGIN_AUDIO]"),
        ("SOURCE", "375"),
        ("TEMPLATE", "[/INST]"),
    ],
    ("voxtral", "chat_source_first"): [
        ("TEMPLATE", "<s>[INST][BEGIN_AUDIO]"),
        ("SOURCE", "375"),
        TRANSLATE,
        ("TEMPLATE", "[/INST]"),
    ],
    ("granite_speech", "chat"): [
        ("TEMPLATE", "<|im_start|>user\n"),
        TRANSLATE,
        ("TEMPLATE", "\n"),
        ("SOURCE", "21"),
        ("TEMPLATE", END),
    ],
    ("granite_speech", "chat_source_first"): [
        ("TEMPLATE", "<|im_start|>user\n"),
        ("SOURCE", "21"),
        TRANSLATE,
        ("TEMPLATE", END),
    ],
    ("qwen2_5_omni_thinker", "chat"): [
        *SYSTEM,
        ("TEMPLATE", USER),
        TRANSLATE,
        ("TEMPLATE", "\n<|audio_bos|>"),
        ("SOURCE", "50"),
        ("TEMPLATE", "<|audio_eos|>" + END),
    ],
    ("qwen2_5_omni_thinker", "chat_source_first"): [
        *SYSTEM,
        ("TEMPLATE", USER + "<|audio_bos|>"),
        ("SOURCE", "50"),
        ("TEMPLATE", "<|audio_eos|>"),
        TRANSLATE,
        ("TEMPLATE", END),
    ],
}


@pytest.mark.parametrize(("name", "template"), PROMPTS)
def test_segments_equal_those_labelled_by_hand(name, template, build, waveform):
    checkpoint = load(build(name), template=template)
    prompt = checkpoint.encode(" Translate the speech into German. ", waveform(2.0))
    assert spelled(checkpoint, prompt) == PROMPTS[name, template]
    assert set(prompt.positions(Segment.SOURCE)) == {
        i for i, token in enumerate(prompt.input_ids) if token == checkpoint.processor.audio_token_id
    }


def test_a_bos_token_that_the_tokenizer_adds_begins_every_prompt(tmp_path, make_tokenizer, monkeypatch, waveform):
    base = make_tokenizer(None)
    base.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    checkpoint = load(qwen2_audio(tmp_path / "bos", base, monkeypatch))
    from_speech = checkpoint.encode("Repeat.", waveform(1.0))
    again = checkpoint.encode("Repeat.", checkpoint.encode_speech(waveform(1.0)))
    from_text = checkpoint.encode("Repeat.", "rain")
    assert again.input_ids == from_speech.input_ids
    assert again.segments == from_speech.segments
    for prompt in (from_speech, from_text):
        assert spelled(checkpoint, prompt)[0] == ("TEMPLATE", "<s><|im_start|>system\n")


@pytest.mark.parametrize("template", ["chat", "chat_source_first"])
def test_a_transcript_takes_the_place_of_the_speech(folder, template):
    checkpoint = load(folder, template=template)
    prompt = checkpoint.encode("Translate the speech into German.", "the old town")
    runs = [run for run in spelled(checkpoint, prompt) if run[0] in ("INSTRUCTION", "SOURCE")]
    sources = checkpoint.tokenizer.decode([prompt.input_ids[i] for i in prompt.positions(Segment.SOURCE)])
    assert sources.strip() == "the old town"
    assert [name for name, _ in runs] == ["INSTRUCTION", "SOURCE"][:: 1 if template == "chat" else -1]
    assert not prompt.features


# The model is not changed


def test_embedded_prompts_give_the_models_own_logits(folder, waveform):
    checkpoint = load(folder)
    prompt = checkpoint.encode("Translate the speech into German.", waveform(1.3))
    embedded = checkpoint.embed([prompt])[0][None]
    with torch.no_grad():
        logits = checkpoint.llm(inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2])).logits
    expected = whole_pass(checkpoint, prompt).logits
    assert torch.equal(logits, expected)
    silent = checkpoint.encode("Translate the speech into German.", np.zeros(len(waveform(1.3)), np.float32))
    assert not torch.allclose(whole_pass(checkpoint, silent).logits, expected)  # and they depend on the speech


def test_generated_answers_equal_the_models_own(folder, waveform):
    checkpoint = load(folder)
    prompts = [checkpoint.encode("Translate it.", waveform(s, seed=i)) for i, s in enumerate((0.6, 1.9))]
    for prompt, answer in zip(prompts, checkpoint.generate(checkpoint.embed(prompts), max_new_tokens=20), strict=True):
        ids = torch.tensor([prompt.input_ids])
        with torch.no_grad():
            own = checkpoint.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **prompt.features,
                do_sample=False,
                max_new_tokens=20,
                pad_token_id=0,
            )
        assert answer == own[0, len(prompt) :].tolist()


def test_encoded_speech_can_be_reused_with_every_instruction(folder, waveform):
    checkpoint = load(folder)
    audio = waveform(1.3)
    again = checkpoint.encode("Repeat what was said.", checkpoint.encode_speech(audio))
    whole = checkpoint.encode("Repeat what was said.", audio)
    assert again.input_ids == whole.input_ids
    assert again.segments == whole.segments
    assert torch.equal(checkpoint.embed([again])[0], checkpoint.embed([whole])[0])


def test_the_gradient_of_the_embeddings_equals_the_models_own(folder, samples):
    checkpoint = load(folder)
    item = prepare(checkpoint, samples[:1], ResponseOptions(response="reference"), "fail")[0][0]
    weight = checkpoint.llm.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(response_loss(checkpoint, item), weight)
    ids = torch.tensor([[*item.prompt.input_ids, *item.response]])
    logits = checkpoint.model(input_ids=ids, attention_mask=torch.ones_like(ids), **item.prompt.features).logits[
        0, -len(item.response) - 1 : -1
    ]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(item.response))
    (expected,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_granite_adapter_stays_active_during_generation(granite, waveform):
    pytest.importorskip("peft", MIN_PEFT_VERSION)  # transformers 5.24 asks for 0.22 to add an adapter
    from peft import LoraConfig

    checkpoint = load(granite)
    checkpoint.model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    for name, parameter in checkpoint.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(100)
    prompt = checkpoint.encode("Translate it.", waveform(1.0))
    embedded = checkpoint.embed([prompt])
    with_adapter = checkpoint.generate(embedded, max_new_tokens=12)
    checkpoint.model.disable_adapters()
    without = checkpoint.generate(embedded, max_new_tokens=12)
    checkpoint.model.enable_adapters()
    ids = torch.tensor([prompt.input_ids])
    own = checkpoint.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.features, do_sample=False, max_new_tokens=12
    )
    assert with_adapter[0] == own[0, len(prompt) :].tolist()
    assert with_adapter != without


# Probes


def test_attention_leaves_logits_unchanged_and_passes_its_self_check(folder, samples):
    checkpoint = load(folder)
    prompt = checkpoint.encode(samples[0].instruction, "the old town")
    before = whole_pass(checkpoint, prompt).logits
    result = lsm_probe.attention(checkpoint, samples, response="reference")
    assert torch.equal(whole_pass(checkpoint, prompt).logits, before)
    assert result.self_check["worst"] <= 1e-5
    assert result.to_dict()["checkpoint"]["source"] == "speech"
    assert len(result.samples) == len(samples)
    assert np.isfinite(result.to_dict()["eta"]["mean"]).all()


def test_attention_does_not_depend_on_the_batch(folder, samples):
    checkpoint = load(folder)
    alone = lsm_probe.attention(checkpoint, samples, response="reference", batch_size=1)
    together = lsm_probe.attention(checkpoint, samples, response="reference", batch_size=len(samples))
    np.testing.assert_allclose(together.norms, alone.norms, rtol=1e-5)
    np.testing.assert_allclose(together.head_norms, alone.head_norms, rtol=1e-5)


def test_attention_equals_brute_force_in_float64(folder, samples):
    """The last layer's norms of alpha v W_O, from eager attention and the module's own weights."""
    checkpoint = load(folder)
    checkpoint.model.double()
    sample = samples[2]
    prompt = checkpoint.encode(sample.instruction, read_audio(sample))
    response = checkpoint.encode_response(sample.target)
    prompt_embedded = checkpoint.embed([prompt])[0]
    said = checkpoint.llm.get_input_embeddings()(torch.tensor(response))
    result = lsm_probe.attention(checkpoint, [sample], response="reference")
    decoder = checkpoint.llm.get_decoder()
    seen = {}
    attention = decoder.layers[-1].self_attn
    packed = getattr(attention, "qkv_proj", None)  # Phi's: queries, keys and values in one
    width = 16 if packed else 0  # of the values: two heads of eight
    hook = (packed or attention.v_proj).register_forward_hook(
        lambda module, args, output: seen.update(value=output[..., -width:])
    )
    decoder.set_attn_implementation("eager")
    with torch.no_grad():
        alphas = decoder(
            inputs_embeds=torch.cat([prompt_embedded, said])[None], output_attentions=True, use_cache=False
        ).attentions
    hook.remove()
    heads, groups = LLM["num_attention_heads"], LLM["num_key_value_heads"]
    value = seen["value"][0].unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, dim=1)  # [keys, heads, e]
    w_o = attention.o_proj.weight.t().unflatten(0, (heads, -1))  # [heads, e, d]
    rows = torch.arange(len(response)) + len(prompt) - 1
    vectors = torch.einsum("hrk,khe,hed->rkd", alphas[-1][0][:, rows], value, w_o)
    scores = vectors.norm(dim=-1).mean(0)
    for name, segment in (("instruction", Segment.INSTRUCTION), ("source", Segment.SOURCE)):
        expected = scores[prompt.positions(segment)].sum().item()
        got = result.norms[0, -1, lsm_probe.probes.attention.result.SEGMENTS.index(name)]
        assert got == pytest.approx(expected, rel=1e-5)


def test_every_probe_runs_on_an_audio_llm(folder, samples):
    checkpoint = load(folder)
    reference = {"response": "reference"}
    sensitivity = lsm_probe.sensitivity(checkpoint, samples, instructions=lsm_probe.read_pool("probing"), **reference)
    knockout = lsm_probe.knockout(checkpoint, samples[:2], window=1, **reference)
    alignment = lsm_probe.alignment(checkpoint, samples, perplexity=1.5)
    from_speech = lsm_probe.importance(checkpoint, samples[:2], **reference)
    from_text = lsm_probe.importance(checkpoint, samples[:2], modality="text", **reference)
    assert len(sensitivity.samples) == len(alignment.samples) == len(samples)
    assert knockout.self_check["worst"] <= 1e-5
    assert np.isfinite(knockout.fall).all()
    assert not np.allclose(from_speech.sums, from_text.sums)
    names = [parameter["name"] for parameter in from_speech.parameters]
    assert not any("audio_tower" in name or "encoder" in name for name in names)
    assert {parameter["layer"] for parameter in from_speech.parameters} == {None, 0, 1, 2}


def test_timeline_token_times_span_the_utterance(folder, samples):
    """Voxtral encodes 30 s at 12.5 tokens per second, whatever the length of the speech."""
    checkpoint = load(folder)
    found = lsm_probe.timeline(checkpoint, samples[1], response="reference")
    seconds = len(read_audio(samples[1])) / 16_000
    assert found.token_times[0, 0] == 0
    assert found.token_times[-1, 1] == pytest.approx(seconds)
    assert found.norms.shape[2] == len(found.token_times)
    if folder.parent.name == "voxtral":
        assert found.token_times[0, 1] == pytest.approx(0.08)
        assert len(found.token_times) == int(np.ceil(seconds / 0.08))


# Refusals in one line


@pytest.mark.parametrize(
    ("model_type", "model_class"),
    [
        ("voxtral_realtime", "VoxtralRealtimeForConditionalGeneration"),
        ("kyutai_speech_to_text", "KyutaiSpeechToTextForConditionalGeneration"),
        ("vibevoice_asr", "VibeVoiceAsrForConditionalGeneration"),
    ],
)
def test_models_that_add_speech_to_text_positions_or_add_noise_are_refused(model_type, model_class, tmp_path):
    config = {"model_type": model_type, "architectures": [model_class]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"cannot be measured: it adds (its speech onto|random noise)"):
        load(tmp_path)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinite"), (28_000, "16-bit integers")])
def test_bad_waveforms_are_refused(folder, waveform, value, message):
    audio = waveform(1.0)
    audio[100] = value
    with pytest.raises(InputError, match=message):
        load(folder).encode("Repeat.", audio)


@pytest.mark.parametrize("name", ["qwen2_audio", "audioflamingo3"])
def test_an_adapter_is_merged_into_an_audio_llm(build, name, tmp_path, waveform):
    folder = build(name)
    base = load(folder)
    adapted = peft.get_peft_model(base.model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = load(tmp_path / "adapter")
    assert lsm_probe.models.lookup.look_up(str(tmp_path / "adapter")) == "speech"
    prompt = merged.encode("Repeat.", waveform(1.0))
    ids, features = torch.tensor([prompt.input_ids]), dict(prompt.features)
    with torch.no_grad():
        expected = adapted.eval()(input_ids=ids, **features).logits
        plain = load(folder).model(input_ids=ids, **features).logits
        found = merged.llm(inputs_embeds=merged.embed([prompt])[0][None]).logits
    assert (expected - found).abs().max() < 1e-4
    assert (expected - plain).abs().max() > 0.1
    assert merged.identity.adapter.base == replace(load(folder).identity, prompt_sha256=None, date=None)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ["speech_generator.weight", "audio_tower.layers.0.lora_A.weight"])
def test_tensors_unknown_to_the_model_class_are_refused(qwen, name, kind):
    path = qwen / "model.safetensors"
    weights = load_file(path) | {name: torch.ones(4)}
    if kind == "bin":
        path.unlink()
        torch.save(weights, qwen / "pytorch_model.bin")
    else:
        save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"They hold 1 tensor \((model\.)?{name}\)"):
        load(qwen)


def test_speech_that_the_processor_would_truncate_is_refused(qwen, waveform):
    checkpoint = load(qwen)
    checkpoint.encode("Repeat.", waveform(30.0))
    for seconds in (30.2, 31.0):
        with pytest.raises(InputError, match=rf"cuts off the end of {seconds} s of speech"):
            checkpoint.encode("Repeat.", waveform(seconds))


def test_long_speech_that_ends_in_silence_is_not_reported_as_truncated(build, waveform):
    checkpoint = load(build("voxtral"))
    silence = np.zeros(16_000, np.float32)
    assert checkpoint.encode("Repeat.", np.concatenate([waveform(30.0), silence])).count(Segment.SOURCE) == 750


def test_long_speech_that_is_not_truncated_is_embedded(build, waveform):
    checkpoint = load(build("audioflamingo3"))
    prompt = checkpoint.encode("Repeat.", waveform(31.0))
    assert prompt.count(Segment.SOURCE) > 750
    embedded = checkpoint.embed([prompt])[0]
    assert embedded.shape == (len(prompt), LLM["hidden_size"])


@pytest.mark.parametrize("template", ["vicuna", "llama3", "vicuna_text"])
def test_other_templates_are_refused(qwen, template):
    with pytest.raises(InputError, match="chat or chat_source_first"):
        load(qwen, template=template)


def test_the_placeholder_in_the_instruction_is_refused(qwen, waveform):
    checkpoint = load(qwen)
    with pytest.raises(InputError, match=r"instruction holds <\|AUDIO\|>"):
        checkpoint.encode("Repeat <|AUDIO|>.", waveform(1.0))
    with pytest.raises(InputError, match=r"transcript holds <\|AUDIO\|>"):
        checkpoint.encode("Repeat.", "rain <|AUDIO|>")


def test_no_speech_is_refused(folder):
    with pytest.raises(InputError, match="at least one sample"):
        load(folder).encode("Repeat.", np.zeros(0, np.float32))


def test_speech_too_short_for_one_token_is_refused(qwen, waveform):
    with pytest.raises(InputError, match=r"the speech of 0\.020 s is too short"):
        load(qwen).encode("Repeat.", waveform(0.02))


def test_an_error_of_the_processor_is_reported(granite, waveform):
    with pytest.raises(InputError, match=r"GraniteSpeechProcessor takes no 0\.010 s of speech: .*[Pp]adding"):
        load(granite).encode("Repeat.", waveform(0.01))


def test_an_empty_transcript_is_refused(folder):
    with pytest.raises(InputError, match="the source '' has no tokens"):
        load(folder).encode("Repeat.", " ")


def test_a_folder_without_its_processor_is_refused(qwen, tmp_path, monkeypatch, make_tokenizer):
    tokenizer = make_tokenizer(None)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *a, **k: tokenizer)  # what is left of it
    with pytest.raises(InputError, match="has no processor, only a TokenizersBackend"):
        load(qwen)


def test_a_tokenizer_without_the_placeholder_is_refused(qwen):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (qwen / name).unlink()
    with pytest.raises(InputError, match="has no token 400, which stands for the speech"):
        load(qwen)


def test_a_processor_without_a_chat_template_is_refused(granite):
    (granite / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="GraniteSpeechProcessor has no chat template"):
        load(granite)


def test_voxtral_without_mistral_common_is_refused(make_tokenizer):
    processor = type("VoxtralProcessor", (), {"tokenizer": make_tokenizer(None)})()
    with pytest.raises(InputError, match=r"pip install .mistral-common"):
        audio_llm_processor(processor, 24, None)


def test_a_template_that_rewrites_the_instruction_is_refused(qwen, waveform):
    checkpoint = load(qwen)
    processor = checkpoint.processor.processor
    # First beside audio alone, then in plain text too.
    for written, rewritten in (
        ("content['text']", "content['text'] | upper"),
        ("message['content'] }}", "message['content'] | upper }}"),
    ):
        processor.chat_template = processor.chat_template.replace(written, rewritten)
        with pytest.raises(InputError, match="rewrites the user's words") as refused:
            checkpoint.encode("Repeat.", waveform(1.0))
        assert "--template" not in str(refused.value)  # no other template would be accepted


def test_a_model_that_combines_speech_and_text_inside_its_llm_is_refused(qwen, waveform, monkeypatch):
    checkpoint = load(qwen)
    prompt = checkpoint.encode("Repeat.", waveform(1.0))
    whole = checkpoint.model.model
    monkeypatch.setattr(whole, "forward", lambda input_ids, **more: whole.language_model(input_ids=input_ids))
    with pytest.raises(InputError, match="combines speech and text inside its LLM"):
        checkpoint.embed([prompt])


def test_a_model_that_expands_placeholders_itself_is_refused(qwen, waveform):
    """The old format of Qwen2-Audio: one placeholder for all of the speech."""
    checkpoint = load(qwen)
    prompt = checkpoint.encode("Repeat.", waveform(1.0))
    first = prompt.positions(Segment.SOURCE)[0]
    short = [*prompt.input_ids[: first + 1], *prompt.input_ids[prompt.positions(Segment.SOURCE)[-1] + 1 :]]
    from lsm_probe.models.audio_llm import merged_embeddings

    with pytest.raises(InputError, match="one placeholder for each speech token"):
        merged_embeddings(checkpoint.model, torch.tensor([short]), dict(prompt.features))


def test_a_model_that_passes_its_llm_more_than_embeddings_is_refused(qwen, waveform, monkeypatch):
    checkpoint = load(qwen)
    prompt = checkpoint.encode("Repeat.", waveform(1.0))
    own = type(checkpoint.llm.get_decoder()).forward
    whole = checkpoint.model.model

    def forward(**kwargs: Any) -> Any:
        return type(whole).forward(whole, **kwargs, deepstack=torch.ones(1))

    monkeypatch.setattr(whole, "forward", forward)
    monkeypatch.setattr(
        type(checkpoint.llm.get_decoder()), "forward", lambda self, *a, deepstack=None, **k: own(self, *a, **k)
    )
    with pytest.raises(InputError, match="gives its LLM deepstack in addition to embeddings"):
        checkpoint.embed([prompt])


def test_training_an_audio_llm_is_refused(qwen):
    from lsm_probe.training.config import ModelSettings
    from lsm_probe.training.start import start_model

    with pytest.raises(InputError, match="not an LSM of this package"):
        start_model(ModelSettings(start=str(qwen)), None, 0)


def test_phi4_logits_from_speech_equal_those_from_its_embeddings(build, waveform):
    checkpoint = load(build("phi4_multimodal"))
    prompt = checkpoint.encode("Repeat.", waveform(1.5))
    silent = checkpoint.encode("Repeat.", np.zeros_like(waveform(1.5)))
    embedded = checkpoint.embed([prompt])[0][None]
    with torch.no_grad():
        found = checkpoint.llm(inputs_embeds=embedded, use_cache=False).logits
        other = checkpoint.llm(inputs_embeds=checkpoint.embed([silent])[0][None], use_cache=False).logits
    expected = whole_pass(checkpoint, prompt, use_cache=False).logits
    assert torch.equal(found, expected)
    assert (other[0, -1] - expected[0, -1]).abs().max() > 1e-3


def test_phi4_without_its_speech_adapter_is_refused(build, waveform):
    """The release keeps the adapter in a subfolder; without it the model hardly follows speech."""
    folder = build("phi4_multimodal")
    adapted = peft.get_peft_model(
        load(folder).model, peft.LoraConfig(r=2, target_modules=["qkv_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(folder / "speech-lora")
    with pytest.raises(InputError, match=rf"--ckpt {folder}/speech-lora --base {folder}"):
        load(folder)
    merged = load(folder / "speech-lora", base=str(folder))
    prompt = merged.encode("Repeat.", waveform(1.5))
    ids = torch.tensor([prompt.input_ids])
    with torch.no_grad():
        expected = adapted.eval()(input_ids=ids, **prompt.features).logits
        found = merged.llm(inputs_embeds=merged.embed([prompt])[0][None]).logits
    assert (expected - found).abs().max() < 1e-4


def test_harness_scores_of_text_equal_those_from_the_models_embeddings(folder, mmlu_folder, tmp_path):
    from lsm_probe.evaluation.harness import Harness
    from lsm_probe.evaluation.mmlu import Mmlu, read_mmlu, write_mmlu_tasks

    checkpoint = load(folder)
    mmlu = Mmlu("one", {"anatomy": read_mmlu(mmlu_folder, questions=3).subjects["anatomy"]})
    if checkpoint.model.config.model_type == "voxtral":
        with pytest.raises(InputError, match=r"voxtral.* \(MistralCommonBackend\): leave MMLU"):
            lsm_probe.text_ability(checkpoint, mmlu=mmlu)
        return
    (task,) = write_mmlu_tasks(mmlu, tmp_path / "tasks")
    tokenize, embed = checkpoint.tokenizer, checkpoint.llm.get_input_embeddings()
    for row in Harness(checkpoint, tmp_path / "tasks", shots=1, batch_size=3).run(task):
        for (context, answer), (found, _) in zip(row["arguments"], row["filtered_resps"], strict=True):
            before, ids = tokenize(context)["input_ids"], tokenize(context + answer)["input_ids"]
            with torch.no_grad():
                logs = checkpoint.llm(inputs_embeds=embed(torch.tensor([ids]))).logits[0].log_softmax(-1)
            own = sum(logs[i - 1, ids[i]].item() for i in range(len(before), len(ids)))
            assert found == pytest.approx(own, abs=1e-4)
