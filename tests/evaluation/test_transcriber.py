"""The transcriber of a cascade: transcripts do not depend on the batch or on the checkpoint's settings."""

import json
import shutil
from logging import Handler
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.errors import InputError
from lsm_probe.evaluation.metrics import word_error_rate
from lsm_probe.evaluation.transcriber import load_transcriber

RATE = 16_000
LANGUAGES = ["en", "de", "zh"]
TASKS = ["translate", "transcribe"]
ENGLISH_ONLY = {"is_multilingual": False, "lang_to_id": None, "task_to_id": None}


def save_whisper(folder: Path) -> Path:
    """A random multilingual Whisper that writes letters."""
    letters = list(bytes_to_unicode().values())
    control = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{name}|>" for name in (*LANGUAGES, *TASKS))]
    control += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    times = [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
    id_of = {token: i for i, token in enumerate([*letters, *control, *times])}
    tokenizer = WhisperTokenizer(vocab={token: id_of[token] for token in [*letters, control[0]]}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": control[1:]})
    tokenizer.add_tokens(times)
    assert tokenizer.get_vocab() == id_of
    end, start = id_of[control[0]], id_of[control[1]]
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(
        vocab_size=len(id_of),
        d_model=32,
        encoder_layers=1,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_target_positions=32,
        init_std=0.3,
        **ends,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **ends,
        max_length=24,
        no_timestamps_token_id=id_of["<|notimestamps|>"],
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": id_of[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={task: id_of[f"<|{task}|>"] for task in TASKS},
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper") / "multilingual")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "whisper")


@pytest.fixture(scope="module")
def transcriber(folder: Path):
    return load_transcriber(str(folder), device="cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def edit(folder: Path, file: str, **changes) -> str:
    """Changes settings; None removes one."""
    path = folder / file
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return str(folder)


def alone(transcriber, waveforms, languages) -> list[str]:
    return [
        transcriber.transcribe([waveform], [language])[0]
        for waveform, language in zip(waveforms, languages, strict=True)
    ]


def test_transcripts_do_not_depend_on_the_batch(transcriber, waveform):
    clips = [waveform(seconds, seed) for seed, seconds in enumerate((2, 31, 0.3, 62, 30, 30.005))]
    languages = ["en", "de", None, "de", "en", "zh"]
    expected = alone(transcriber, clips, languages)
    assert transcriber.transcribe(clips[::-1], languages[::-1]) == expected[::-1]
    assert all(expected)
    assert len(set(expected)) > 4
    assert expected[3] != transcriber.transcribe([clips[3][: 30 * RATE]], ["de"])[0]
    assert transcriber.transcribe([], []) == []


def test_a_language_is_given_by_code_or_name_and_otherwise_detected(transcriber, waveform):
    clips = [waveform(3, seed) for seed in range(3)]
    transcripts = {code: alone(transcriber, clips, [code] * 3) for code in LANGUAGES}
    assert transcripts["en"] != transcripts["de"] != transcripts["zh"]
    assert transcriber.transcribe(clips, ["English", "de", "zh-CN"]) == [
        transcripts[code][i] for i, code in enumerate(LANGUAGES)
    ]
    for spelling in ("zh_CN", "cmn", "Mandarin", "ZH"):
        assert transcriber.transcribe(clips[:1], [spelling]) == transcripts["zh"][:1]
    features = [transcriber.processor.feature_extractor(clip, sampling_rate=RATE).input_features[0] for clip in clips]
    ids = transcriber.model.detect_language(torch.tensor(np.stack(features))).tolist()
    code_of = {i: name.strip("<|>") for name, i in transcriber.model.generation_config.lang_to_id.items()}
    assert transcriber.transcribe(clips, [None] * 3) == [transcripts[code_of[i]][row] for row, i in enumerate(ids)]


def test_the_whisper_task_is_transcribe(copy, transcriber, waveform):
    clip = waveform(3)
    translating = load_transcriber(edit(copy, "generation_config.json", task="translate"))
    assert translating.transcribe([clip], ["en"]) == transcriber.transcribe([clip], ["en"])


@pytest.mark.parametrize("seconds", [3, 31])
def test_the_checkpoints_generation_settings_are_ignored(copy, transcriber, waveform, seconds):
    clip = waveform(seconds)
    expected = transcriber.transcribe([clip], ["de"])
    edit(copy, "config.json", forced_decoder_ids=[[1, transcriber.model.generation_config.lang_to_id["<|en|>"]]])
    edit(
        copy,
        "generation_config.json",
        num_beams=3,
        do_sample=True,
        temperature=2.0,
        no_speech_threshold=0.0,
        logprob_threshold=0.0,
        compression_ratio_threshold=0.01,
        condition_on_prev_tokens=True,
        forced_decoder_ids=[[1, None], [2, transcriber.model.generation_config.task_to_id["translate"]]],
    )
    other = load_transcriber(str(copy))
    torch.manual_seed(0)
    assert other.transcribe([clip], ["de"]) == expected
    assert other.transcribe([clip, clip], ["de", "de"]) == expected * 2


def test_an_english_only_model_accepts_english_only(copy, waveform):
    english = load_transcriber(edit(copy, "generation_config.json", **ENGLISH_ONLY))
    first, *others = english.transcribe([waveform(3)] * 4, [None, "en", "English", "en-GB"])
    assert others == [first] * 3
    with pytest.raises(InputError, match="transcribes only English, not 'German'"):
        english.transcribe([waveform(3)], ["German"])


def test_an_unknown_language_is_refused(transcriber, waveform):
    with pytest.raises(InputError, match="does not know the language 'fr'"):
        transcriber.transcribe([waveform(3)] * 2, ["en", "fr"])


def test_nothing_is_printed_to_stderr(copy, waveform, capfd):
    edit(copy, "generation_config.json", forced_decoder_ids=[[1, None], [2, 5]])
    whisper = load_transcriber(str(copy))
    logging.warning_once.cache_clear()  # transformers shows some warnings only once per process
    log_lines = LogLines()
    logging.add_handler(log_lines)
    capfd.readouterr()
    whisper.transcribe([waveform(3), waveform(2), waveform(31), waveform(32)], [None, "en", None, None])
    logging.remove_handler(log_lines)
    output = capfd.readouterr()
    assert (output.out, output.err, log_lines.seen) == ("", "", [])


class LogLines(Handler):
    """Collects log lines: transformers' own handler writes to the stderr of the time when it was imported."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record):
        self.seen.append(record.getMessage())


def test_identity_contains_the_weights(transcriber, folder):
    assert transcriber.identity.model_type == "whisper"
    assert list(transcriber.identity.weights_sha256) == ["model.safetensors"]
    assert transcriber.name == str(folder)


class TestRefusals:
    def refusal(self, name: object) -> str:
        with pytest.raises(InputError) as error:
            load_transcriber(str(name))
        line = str(error.value)
        assert str(name) in line
        return line

    def test_a_hub_name_offline(self):
        assert "cannot be loaded" in self.refusal("openai/whisper-tiny")

    def test_an_unknown_builtin(self):
        assert "builtin:whisper" in self.refusal("builtin:llm")

    def test_a_model_of_another_kind(self, tiny_llm_folder):
        assert "'llama' model" in self.refusal(tiny_llm_folder)

    def test_an_encoder_without_decoder(self, copy):
        from safetensors.torch import load_file, save_file

        weights = load_file(copy / "model.safetensors")
        encoder = {name: tensor for name, tensor in weights.items() if "decoder" not in name and "proj_out" not in name}
        save_file(encoder, copy / "model.safetensors", metadata={"format": "pt"})
        assert "lack" in self.refusal(copy)

    @pytest.mark.parametrize("key", ["is_multilingual", "lang_to_id", "task_to_id", "no_timestamps_token_id"])
    def test_a_checkpoint_without_prompt_settings(self, copy, key):
        assert f"lacks {key}" in self.refusal(edit(copy, "generation_config.json", **{key: None}))

    def test_checksums_that_do_not_match(self, copy):
        from lsm_probe.checksums import write_checksums

        write_checksums(copy)
        edit(copy, "config.json", dropout=0.5)
        assert "config.json" in self.refusal(copy)


@pytest.fixture(scope="module")
def speech():
    return lsm_probe.read_manifest("builtin:probe")


@pytest.fixture(scope="module")
def whisper():
    return load_transcriber("builtin:whisper", device="cpu")


@pytest.mark.real
class TestTinyEn:
    def test_transcribes_the_built_in_speech_without_errors(self, whisper, speech):
        speech = speech[:6]
        texts = whisper.transcribe([read_audio(sample) for sample in speech], [sample.language for sample in speech])
        rate = word_error_rate([sample.text for sample in speech], texts)
        assert rate.details["words"] > 70
        assert rate.value == 0

    def test_transcribes_speech_above_30_s_the_same_alone_and_in_a_batch(self, whisper, speech):
        clips = [read_audio(sample) for sample in speech]
        parts = [range(9, 10), range(8), range(24, 25)]
        spoken = [np.concatenate([clips[i] for i in part]) for part in parts]
        expected = alone(whisper, spoken, ["en", None, None])
        assert whisper.transcribe(spoken, [None, "en", "en"]) == expected
        assert [len(clip) > 30 * RATE for clip in spoken] == [False, True, False]
        meant = [" ".join(speech[i].text for i in part) for part in parts]
        for text, said in zip(meant, expected, strict=True):
            assert word_error_rate([text], [said]).value <= 3, said
