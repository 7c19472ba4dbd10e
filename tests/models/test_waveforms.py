"""Every function that takes a waveform checks it, and no keyword is ignored."""

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.evaluation.transcriber import load_transcriber
from lsm_probe.models.kv_cache import CACHE
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
from lsm_probe.models.processing_lsm import LsmProcessor
from lsm_probe.probes.timeline.word_times import word_times

ENTRY_POINTS = {
    "processor": lambda lsm, audio: lsm.processor("Repeat.", audio),
    "processor.encode": lambda lsm, audio: lsm.processor.encode("Repeat.", audio),
    "processor.extract": lambda lsm, audio: lsm.processor.extract(audio),
    "encode": lambda lsm, audio: lsm.encode("Repeat.", audio),
    "encode_speech": lambda lsm, audio: lsm.encode_speech(audio),
    "speech_attention": lsm_probe.speech_attention,
    "word_times": lambda lsm, audio: word_times(audio, "a"),
}
BAD = {"NaN or infinite": np.nan, "16-bit integers": 28_000, "32-bit integers": -2e9}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("message", BAD)
def test_bad_waveforms_are_refused(tiny_lsm, waveform, entry_point, message):
    audio = waveform(1.0)
    audio[100] = BAD[message]
    with pytest.raises(InputError, match=message):
        ENTRY_POINTS[entry_point](tiny_lsm, audio)


@pytest.mark.parametrize("message", BAD)
def test_the_transcriber_refuses_bad_waveforms(waveform, message):
    audio = waveform(1.0)
    audio[100] = BAD[message]
    with pytest.raises(InputError, match=message):
        load_transcriber("builtin:whisper", device="cpu").transcribe([audio], [None])


def test_16_bit_integers_are_scaled_as_in_a_file(tiny_lsm, waveform):
    integers = np.rint(waveform(1.0) * 10_000).astype(np.int16)
    found, expected = tiny_lsm.processor("Repeat.", integers), tiny_lsm.processor("Repeat.", integers / 32_768)
    assert torch.equal(found["input_features"], expected["input_features"])


@pytest.mark.parametrize(
    "other",
    [torch.from_numpy, lambda audio: audio.astype(">f4"), lambda audio: torch.from_numpy(audio).requires_grad_()],
    ids=["tensor", "big-endian", "tensor with gradient"],
)
def test_tensors_and_other_byte_orders_give_the_same_features(tiny_lsm, waveform, other):
    audio = waveform(1.0)
    found, expected = tiny_lsm.processor("Repeat.", other(audio)), tiny_lsm.processor("Repeat.", audio)
    assert torch.equal(found["input_features"], expected["input_features"])


def test_a_list_of_numbers_is_refused(tiny_lsm):
    with pytest.raises(InputError, match="the speech is a list of numbers: give an array, or a list of arrays"):
        tiny_lsm.processor("Repeat.", [0.0] * 16_000)


def test_the_sampling_rate_is_checked(tiny_lsm, waveform):
    audio = waveform(1.0)
    found = tiny_lsm.processor("Repeat.", audio, sampling_rate=16_000)
    assert torch.equal(found["input_features"], tiny_lsm.processor("Repeat.", audio)["input_features"])
    with pytest.raises(InputError, match=r"sampled at 48000 Hz.*soxr\.resample\(audio, 48000, 16000\)"):
        tiny_lsm.processor("Repeat.", audio, sampling_rate=48_000)


@pytest.mark.parametrize("keyword", ["sample_rate", "return_tensor", "max_length"])
def test_unknown_keywords_are_refused(tiny_lsm, waveform, keyword):
    with pytest.raises(TypeError, match=keyword):
        tiny_lsm.processor("Repeat.", waveform(1.0), **{keyword: 1})
    model: LsmForConditionalGeneration = tiny_lsm.model
    with pytest.raises(TypeError, match=f"takes no {keyword}"):
        model(**tiny_lsm.processor("Repeat.", waveform(1.0)), **{keyword: 1})


def test_the_model_accepts_the_keywords_of_its_llm(tiny_lsm, waveform):
    inputs = tiny_lsm.processor("Repeat.", waveform(1.0))
    output = tiny_lsm.model(**inputs, use_cache=True, output_hidden_states=True, return_dict=True, logits_to_keep=1)
    assert output.hidden_states
    assert output[CACHE] is not None
    assert output.logits.shape[1] == 1


def test_the_processor_has_the_interface_of_transformers(tiny_lsm, waveform, tmp_path):
    tiny_lsm.processor.save_pretrained(tmp_path)
    loaded = LsmProcessor.from_pretrained(tmp_path)
    found, expected = (p("Repeat.", waveform(1.0)) for p in (loaded, tiny_lsm.processor))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    turn = [{"role": "user", "content": "Hello."}]
    assert "Hello." in loaded.apply_chat_template(turn, chat_template="{{ messages[0]['content'] }}")


@pytest.mark.parametrize("samples", [1, 160, 200, 480_001, 480_160])
def test_a_last_piece_shorter_than_half_a_window_is_encoded(build_shape, waveform, samples):
    lsm = build_shape("swiglu_stack-clip")
    audio = waveform(samples / 16_000)
    speech = lsm.encode_speech(audio)
    assert len(audio) == samples
    assert len(speech) == lsm.processor.count_speech_tokens(samples)
    assert speech.isfinite().all()
    last = lsm.processor.extract(audio)["input_features"][-1]
    frames = -(-(samples % 480_000) // 160)
    assert (last[:, :frames] != 0).all()
    assert (last[:, frames:] == 0).all()
