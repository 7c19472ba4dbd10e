"""Text to speech to self-powered data with the real voice, Whisper tiny.en and SmolLM2-135M-Instruct."""

import jiwer
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor
from whisper_normalizer.english import EnglishTextNormalizer

import lsm_probe
from lsm_probe import assets
from lsm_probe.data.audio import read_audio
from lsm_probe.data.commands import command_utterances
from lsm_probe.data.manifest import manifest_writer, read_manifest
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample
from lsm_probe.data.speech import SpeechSettings, synthesize

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six spoken commands."""
    folder = tmp_path_factory.mktemp("commands")
    settings = SpeechSettings(speeds=(0.9, 1.1))
    spoken = synthesize(command_utterances(240, 0)[:6], folder / "audio", settings, workers=1, problems=Problems())
    with manifest_writer(folder / "manifest.jsonl") as write:
        for utterance in spoken.utterances:
            write(Sample(id=utterance.id, instruction="Transcribe.", audio=utterance.audio, text=utterance.text))
    return folder / "manifest.jsonl"


def test_whisper_transcribes_the_commands_correctly(manifest):
    model = WhisperForConditionalGeneration.from_pretrained(assets.speech_encoder(), dtype=torch.float32)
    processor = WhisperProcessor.from_pretrained(assets.speech_encoder())
    samples = read_manifest(manifest)
    clips = [read_audio(sample) for sample in samples]
    features = processor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    transcripts = processor.batch_decode(model.generate(features), skip_special_tokens=True)
    normalise = EnglishTextNormalizer()
    assert jiwer.wer([normalise(s.text) for s in samples], [normalise(text) for text in transcripts]) < 0.05


def test_self_powered_answers_are_those_of_the_naive_loop(manifest, builtin, tmp_path):
    checkpoint = builtin("builtin:llm")
    recipe = lsm_probe.Recipe(max_new_tokens=12)
    samples = read_manifest(manifest)
    report = lsm_probe.augment(checkpoint, samples, tmp_path / "out", recipe)
    rows = pq.read_table(tmp_path / "out" / "shards" / "00000.parquet").to_pylist()
    assert report["samples"] == len(rows) == 6
    eos = checkpoint.eos_token_ids
    settings = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=eos, pad_token_id=eos[0])
    asked = [row for row in rows if row["finish_reason"] != "transcript"]
    assert len(asked) > 3
    for row in asked:
        ids = torch.tensor([checkpoint.encode(row["instruction"], row["text"]).input_ids])
        alone = checkpoint.llm.generate(input_ids=ids, generation_config=settings)[0, ids.shape[1] :].tolist()
        assert row["response"] == checkpoint.decode(alone)
    kept = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert 0 < len(kept) == report["kept"]
    assert {sample.audio for sample in kept} <= {sample.audio for sample in samples}
