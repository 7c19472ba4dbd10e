"""The timeline: the attention probe's numbers by response token, laid over time, and what is read from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.speech_times import frame_times
from lsm_probe.probes.timeline import measure as timeline_module
from lsm_probe.probes.timeline.measure import choose_sample, spread_evenly
from lsm_probe.probes.timeline.word_times import word_times
from lsm_probe.probes.timeline.words import Word, loudness


@pytest.fixture(autouse=True)
def no_whisper(request, monkeypatch):
    """Words are placed without the real Whisper: at one second each."""
    if "real" not in request.keywords:
        monkeypatch.setattr(
            timeline_module,
            "word_times",
            lambda waveform, text: [Word(word, i, i + 0.5) for i, word in enumerate(text.split())],
        )


@pytest.fixture
def made(make_timeline):
    """Two layers, three response tokens and four speech tokens of 0.5 s: layer 0 follows, layer 1 stays."""
    follows = np.array([[9, 1, 1, 1], [1, 9, 1, 1], [1, 1, 1, 9]])
    stays = np.array([[1, 50, 1, 1], [1, 50, 1, 2], [1, 50, 2, 1]])
    return make_timeline(
        np.zeros(32_000, np.float32),
        norms=np.stack([follows, stays]).astype(np.float32),
        eta=np.array([0.25, 0.75]),
        sample={"id": "s", "instruction": "Do.", "response": "a b c", "response_ids": [1, 2, 3], "text": "x y"},
        tokens=["a", "b", "c"],
        times_from="connector",
        words=[Word("x", 0.5, 1.0), Word("y", 1.5, 2.0)],
    )


@pytest.mark.parametrize("response", ["generated", "reference"])
def test_the_mean_over_response_tokens_is_what_the_attention_probe_gives(tiny_lsm, samples, response):
    sample = samples[4]
    found = lsm_probe.timeline(tiny_lsm, sample, response=response, max_new_tokens=6)
    expected = lsm_probe.attention(tiny_lsm, [sample], response=response, max_new_tokens=6, tokens=True)
    scores = expected.token_scores
    np.testing.assert_allclose(found.norms.mean(1), scores.norms[:, scores.segments == 4], rtol=1e-4)
    np.testing.assert_allclose(found.eta, expected.eta().mean)
    assert found.norms.shape == (3, expected.rows[0], expected.source_lengths()[sample.id])
    assert len(found.tokens) == expected.rows[0]
    assert tiny_lsm.decode(found.sample["response_ids"]) == found.sample["response"]
    assert found.words[1] == Word(sample.text.split()[1], 1, 1.5)


@pytest.mark.parametrize("connector", ["window_qformer", "frame_stack", "conv", "swiglu_stack", "transformer"])
def test_what_frames_receive_adds_up_to_what_tokens_received(
    tiny_encoder_folder, tiny_llm_folder, tiny_projector, samples, connector
):
    projector = tiny_projector() if connector == "window_qformer" else LsmProjectorConfig(connector=connector)
    checkpoint = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=projector)
    found = lsm_probe.timeline(checkpoint, samples[3], max_new_tokens=4)
    assert found.times_from == "connector"
    np.testing.assert_allclose(found.shares.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.over_time().sum(1), found.norms.mean(1).sum(1), rtol=1e-5)
    for token, (begin, end) in enumerate(found.token_times):
        frames = found.frame_times[found.shares[[token]].nonzero()[1]]
        assert frames[0, 0] == pytest.approx(begin)
        assert frames[-1, 1] == pytest.approx(end)
    even = spread_evenly(found.token_times, found.frame_times)
    # A Q-Former has weights of its own; the others read all their states alike.
    assert (abs(even - found.shares).max() > 1e-4) == (connector == "window_qformer")
    assert set(found.self_check) == {"llm"} | ({"encoder", "connector"} if connector == "window_qformer" else set())


def test_tokens_that_do_not_fit_the_frames_are_spread_by_time():
    shares = spread_evenly(np.array([[0, 0.03], [0.03, 0.05]]), frame_times(800)).toarray()
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3, 0], [0, 0.5, 0.5]])


def test_another_audio_llm_has_its_tokens_spread_evenly_and_says_so(tiny_lsm, samples, monkeypatch):
    monkeypatch.setattr(type(tiny_lsm), "speech_token_times", lambda *_: None)
    found = lsm_probe.timeline(tiny_lsm, samples[2], max_new_tokens=3)
    assert found.times_from == "even"
    assert found.to_dict()["speech_token_times_from"] == "even"
    np.testing.assert_allclose(np.diff(found.token_times), found.seconds / len(found.token_times))


def test_rho_is_high_only_if_attention_follows_the_speech(made):
    advance = made.advance(made.norms)
    assert advance[0] == pytest.approx(1)
    assert np.isnan(advance[1])
    # Below the token that all rows take from, layer 1 goes from the middle to the end and back.
    peaks = made.peak_times(made.standing_out())
    np.testing.assert_allclose(peaks, [[0.25, 0.75, 1.75], [0.25, 1.75, 1.25]])
    assert made.advance(made.standing_out())[1] == pytest.approx(0.5)
    assert made.choose_layer() == 0
    assert made.choose_layer(1) == 1
    assert replace(made, tokens=["a", "b"]).chance() == 1
    with pytest.raises(InputError, match="layer 2 is not one of 2"):
        made.choose_layer(2)


def test_attention_to_words_is_compared_with_attention_to_silence(made):
    inside = made.in_words()
    assert inside.sum() == 50
    np.testing.assert_allclose(made.words_to_silence(), [(11 + 11) / (11 + 3), (150 + 4) / (3 + 4)])
    assert replace(made, words=None).words_to_silence() is None
    assert replace(made, words=[Word("all", 0, 2)]).words_to_silence() is None


def test_ratios_are_not_distributed_over_frames(made):
    ratios = made.at_frame(made.standing_out()[0])
    np.testing.assert_allclose(ratios[:, ::25], made.standing_out()[0], rtol=1e-6)
    assert ratios.shape == (3, 100)


def test_the_file_holds_the_numbers(made, tmp_path):
    stored = json.loads((made.save(tmp_path / "new") / "timeline.json").read_text())
    assert stored["schema"] == "lsm-probe/timeline/1"
    np.testing.assert_allclose(stored["norms_by_response_token"], made.norms)
    np.testing.assert_allclose(stored["norms_by_frame"], made.over_time(), rtol=1e-4)
    assert stored["advance"] == [1.0, None]
    assert stored["words"][0] == {"text": "x", "begin": 0.5, "end": 1.0}
    frame = made.to_frame()
    assert list(frame["words_to_silence"]) == pytest.approx(stored["words_to_silence"], abs=1e-4)


def test_words_that_cannot_be_placed_are_left_out_with_the_reason(tiny_lsm, samples, monkeypatch):
    def reason(**changes):
        found = lsm_probe.timeline(tiny_lsm, samples[0].model_copy(update=changes), max_new_tokens=2)
        assert found.words is None
        return found.words_missing

    assert reason(text=None) == "the transcript is not known"
    assert "English" in reason(language="de")
    assert "another script" in reason(text="地下室のラジオ, please", language=None)
    with pytest.raises(InputError, match="at most 30 s") as info:
        word_times(np.zeros(31 * 16_000, np.float32), "a b")

    def refuse(waveform, text):
        raise info.value

    monkeypatch.setattr(timeline_module, "word_times", refuse)
    assert reason() == str(info.value)


def test_a_model_without_speech_input_or_times_is_refused(tiny_llm, tiny_encoder_folder, tiny_llm_folder, samples):
    with pytest.raises(InputError, match="is a text LLM"):
        lsm_probe.timeline(tiny_llm, samples[0])
    linear = LsmProjectorConfig(connector="linear")
    checkpoint = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=linear, decoder_states=7)
    with pytest.raises(InputError, match="they have no times"):
        lsm_probe.timeline(checkpoint, samples[0])


def test_speech_of_several_pieces_is_one_timeline(tiny_lsm, samples, tmp_path, waveform):
    import soundfile

    soundfile.write(tmp_path / "long.wav", waveform(31.0), 16_000)
    sample = samples[0].model_copy(update={"audio": tmp_path / "long.wav", "text": None})
    found = lsm_probe.timeline(tiny_lsm, sample, max_new_tokens=2)
    assert found.token_times[-1, 1] == 31.0
    assert found.over_time().shape == (3, 1550)
    assert isinstance(found.shares, csr_array)


def test_a_sample_is_chosen_by_its_id(samples):
    assert choose_sample(samples) is samples[0]
    assert choose_sample(samples, "s3") is samples[3]
    with pytest.raises(InputError, match="--sample s99 is not in the manifest"):
        choose_sample(samples, "s99")


def test_loudness_is_relative_to_the_loudest_frame():
    wave = np.concatenate([np.full(320, 0.5), np.full(320, 0.05), np.zeros(320), np.full(100, 0.5)])
    np.testing.assert_allclose(loudness(wave.astype(np.float32))[[0, 1, 3]], [0, -20, 0], atol=1e-4)
    assert loudness(wave.astype(np.float32))[2] < -80
    assert np.isfinite(loudness(np.zeros(400, np.float32))).all()


@pytest.mark.real
def test_words_are_placed_where_there_is_sound():
    for sample in lsm_probe.read_manifest("builtin:probe")[:4]:
        wave = lsm_probe.data.audio.read_audio(sample)
        words = word_times(wave, sample.text)
        assert [word.text for word in words] == sample.text.split()
        times = np.array([[word.begin, word.end] for word in words])
        assert (times[:, 0] <= times[:, 1]).all()
        assert (times[1:, 0] >= times[:-1, 1] - 1e-9).all()
        middles = (np.arange(len(loudness(wave))) + 0.5) * 0.02
        inside = ((times[:, :1] <= middles) & (middles < times[:, 1:])).any(0)
        sound = loudness(wave) > -35
        assert sound[inside].mean() > 0.9
        assert sound[~inside].mean() < 0.35


@pytest.mark.real
def test_words_of_two_utterances_are_placed_on_either_side_of_the_pause():
    """Each word, the last before the pause and the first after it too: none is placed where its neighbour is."""
    first, second = lsm_probe.read_manifest("builtin:probe")[1:3]
    before, after = (lsm_probe.data.audio.read_audio(sample) for sample in (first, second))
    wave = np.concatenate([before, np.zeros(16_000, np.float32), after])
    words = word_times(wave, f"{first.text} {second.text}")
    count, pause = len(first.text.split()), len(before) / 16_000
    assert all(word.begin < word.end <= pause for word in words[:count])
    assert all(word.begin >= pause + 1 for word in words[count:])
