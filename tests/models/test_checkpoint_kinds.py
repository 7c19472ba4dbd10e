"""The kinds of checkpoints, constructed directly and by `load`."""

from dataclasses import replace

import pytest
import torch

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_kinds import Lsm, TextLlm, require_lsm
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.segments import Segment


def test_an_lsm_from_model_and_processor_encodes_speech_and_text(tiny_lsm, waveform):
    made = Lsm("mine", tiny_lsm.model, tiny_lsm.processor)
    assert (made.tokenizer, made.template) == (tiny_lsm.processor.tokenizer, tiny_lsm.template)
    assert (made.source, made.identity) == ("speech", ModelIdentity())
    assert made.llm is tiny_lsm.model.language_model
    assert made.connector is tiny_lsm.model.multi_modal_projector
    prompt = made.encode("Repeat.", waveform(1))
    assert torch.equal(made.embed([prompt])[0], tiny_lsm.embed([prompt])[0])
    assert len(made.speech_token_times(16_000)) == prompt.count(Segment.SOURCE)
    reading = replace(made, source="text")
    assert (reading.name, reading.source, reading.template) == ("mine", "text", made.template)
    assert reading.encode("Repeat.", "rain").input_ids == made.encode("Repeat.", "rain").input_ids


def test_a_text_llm_from_model_and_tokenizer_encodes_text(tiny_llm):
    made = TextLlm("mine", tiny_llm.model, tiny_llm.tokenizer, "vicuna")
    assert (made.source, made.processor, made.connector) == ("text", None, None)
    assert made.speech_token_times(16_000) is None
    assert (made.template.name, made.date) == ("vicuna", None)
    assert made.encode("Repeat.", "rain", source_length=9).count(Segment.SOURCE) == 9


def test_require_lsm_refuses_other_checkpoints_in_one_line(tiny_lsm, tiny_llm):
    assert require_lsm(tiny_lsm, "give one") is tiny_lsm
    with pytest.raises(InputError, match=f"^{tiny_llm.name} is not an LSM of this package: give one$"):
        require_lsm(tiny_llm, "give one")
    with pytest.raises(InputError, match=r"^model\.start=x is not an LSM of this package: give one$"):
        require_lsm(tiny_llm, "give one", name="model.start=x")


def test_prompt_ids_and_logits_equal_the_models_own(tiny_lsm, clip, tmp_path):
    audio = clip(tmp_path / "a.wav", seconds=1.3)
    sample = lsm_probe.Sample(id="a", instruction="Repeat.", audio=audio)
    inputs = tiny_lsm.processor(["Repeat."], [read_audio(sample)])
    ids, logits = tiny_lsm.prompt_ids(sample), tiny_lsm.logits(sample)
    assert ids == inputs["input_ids"][0].tolist()
    assert ids.count(tiny_lsm.processor.audio_token_id) == len(tiny_lsm.speech_token_times(int(1.3 * 16_000)))
    with torch.no_grad():
        expected = tiny_lsm.model(**inputs).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_text_llm_reads_the_transcript_of_a_sample(tiny_llm):
    sample = lsm_probe.Sample(id="a", instruction="Repeat.", text="rain")
    ids = tiny_llm.prompt_ids(sample)
    with torch.no_grad():
        expected = tiny_llm.model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(tiny_llm.logits(sample), expected, rtol=1e-5, atol=1e-5)


def test_a_sample_without_a_transcript_is_refused_for_a_text_llm(tiny_llm, clip, tmp_path):
    sample = lsm_probe.Sample(id="a", instruction="Repeat.", audio=clip(tmp_path / "a.wav"))
    with pytest.raises(InputError, match="sample 'a': has no transcript; add 'text' to it"):
        tiny_llm.prompt_ids(sample)


def test_speech_that_was_encoded_once_gives_the_same_embeddings(tiny_lsm, waveform, monkeypatch):
    prompts = [tiny_lsm.encode(words, waveform(1.0)) for words in ("Translate it.", "What was said?")]
    expected = tiny_lsm.embed(prompts)
    with tiny_lsm.encoding_speech_once():
        tiny_lsm.embed(prompts[:1])
        with tiny_lsm.encoding_speech_once(), monkeypatch.context() as patch:
            patch.setattr(Lsm, "_embed_speech", None)
            found = tiny_lsm.embed(prompts)
    assert all(torch.equal(own, once) for own, once in zip(expected, found, strict=True))


def test_speech_is_encoded_again_after_the_block_and_for_another_waveform(tiny_lsm, waveform, monkeypatch):
    encoded = []
    monkeypatch.setattr(
        Lsm, "_embed_speech", lambda self, prompt, ids, features: encoded.append(1) or torch.zeros(len(prompt), 8)
    )
    with tiny_lsm.encoding_speech_once():
        tiny_lsm.embed([tiny_lsm.encode("Listen.", waveform(1.0, seed=seed)) for seed in (0, 1)])
    tiny_lsm.embed([tiny_lsm.encode("Listen.", waveform(1.0, seed=0))])
    assert len(encoded) == 3


def test_speech_beyond_the_memory_for_it_is_encoded_again(tiny_lsm, waveform, monkeypatch):
    prompts = [tiny_lsm.encode("Listen.", waveform(1.0, seed=seed)) for seed in (0, 1)]
    expected = tiny_lsm.embed(prompts)
    one = expected[0][prompts[0].positions(Segment.SOURCE)].nbytes
    monkeypatch.setattr("lsm_probe.models.speech_cache._KEPT", one)
    with tiny_lsm.encoding_speech_once():
        for _ in range(2):
            assert all(torch.equal(*pair) for pair in zip(expected, tiny_lsm.embed(prompts), strict=True))
        assert len(tiny_lsm._speech._kept) == 1
