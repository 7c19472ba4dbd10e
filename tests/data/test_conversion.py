"""Samples from datasets, frames, cuts and arrays: the same samples, numbers and fingerprint as from a manifest."""

import pickle
from functools import cache

import numpy as np
import pandas as pd
import pytest
import soundfile

import lsm_probe
from lsm_probe.data.audio import check_audio_file, read_audio, read_audio_file
from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.data.manifest import fingerprint, manifest_writer
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.training.dataset import TrainingSet
from lsm_probe.training.states import SpeechStates

KEYS = ("id", "instruction", "text", "target", "task", "language")
SAY = "Write down what is said."


@cache
def of_manifest() -> list[Sample]:
    return lsm_probe.read_manifest("builtin:commands")[:3]


def rows(audio) -> list[dict]:
    """The samples as rows; `audio(path)` gives the entry of the column."""
    return [{**{key: getattr(s, key) for key in KEYS}, "audio": audio(s.audio)} for s in of_manifest()]


def wave(path, dtype="float32"):
    return soundfile.read(path, dtype=dtype)


def as_array(path):
    samples, rate = wave(path, "float64")
    return {"array": samples, "sampling_rate": rate, "path": None}


def hugging_face(audio, **options):
    datasets = pytest.importorskip("datasets")
    # Decoding would need torchcodec and change the rate; it is never requested.
    return datasets.Dataset.from_list(rows(audio)).cast_column("audio", datasets.Audio(sampling_rate=8_000))


def cuts(**changes):
    lhotse = pytest.importorskip("lhotse")
    found = []
    for s in of_manifest():
        recording = lhotse.Recording.from_file(s.audio, recording_id=s.id)
        own = {"instruction": s.instruction, "target": s.target, "task": s.task}
        said = lhotse.SupervisionSegment(
            s.id, s.id, 0, recording.duration, text=s.text, language=s.language, custom=own
        )
        found.append(lhotse.MonoCut(s.id, 0, recording.duration, 0, [said], recording=recording))
    return lhotse.CutSet.from_cuts(found)


BYTES = {
    "bytes": lambda: rows(lambda path: path.read_bytes()),
    "dictionaries of bytes": lambda: rows(lambda path: {"bytes": path.read_bytes(), "path": path.name}),
    "paths": lambda: pd.DataFrame(rows(str)).rename(columns={"audio": "path"}),
    "datasets, bytes": lambda: hugging_face(lambda path: {"bytes": path.read_bytes(), "path": path.name}),
    "datasets, paths": lambda: hugging_face(str),
    "datasets, streamed": lambda: hugging_face(str).to_iterable_dataset(),
    "lhotse": cuts,
    "lhotse, in memory": lambda: [cut.move_to_memory() for cut in cuts()],
}
ARRAYS = {
    "float32": lambda: rows(wave),
    "int16": lambda: rows(lambda path: wave(path, "int16")),
    "int32": lambda: rows(lambda path: wave(path, "int32")),
    "with a channel": lambda: rows(lambda path: (wave(path)[0][None], 16_000)),
    "array and sampling_rate": lambda: rows(as_array),
    "frame": lambda: pd.DataFrame(rows(as_array)),
}


def made(kind: str) -> list[Sample]:
    source = {**BYTES, **ARRAYS}[kind]()
    if kind == "lhotse, in memory":
        source = pytest.importorskip("lhotse").CutSet.from_cuts(source)
    return lsm_probe.samples(source)


@pytest.mark.parametrize("kind", [*BYTES, *ARRAYS])
def test_samples_and_waveforms_equal_those_of_the_manifest(kind):
    found = made(kind)
    for sample, true in zip(found, of_manifest(), strict=True):
        assert sample.model_dump(exclude={"audio"}) == true.model_dump(exclude={"audio"})
        np.testing.assert_array_equal(read_audio(sample), read_audio(true), strict=True)
    if kind in BYTES:
        assert fingerprint(found) == fingerprint(of_manifest())


@pytest.mark.parametrize("kind", ["bytes", "float32", "datasets, bytes", "paths", "lhotse"])
def test_attention_of_audio_in_memory_is_bit_identical(kind, tiny_lsm):
    pair = of_manifest()[:2], made(kind)[:2]
    true, found = (lsm_probe.attention(tiny_lsm, samples, max_new_tokens=4) for samples in pair)
    for name in true.BY_SAMPLE:
        np.testing.assert_array_equal(getattr(found, name), getattr(true, name), strict=True)
    assert [row["response_ids"] for row in found.samples] == [row["response_ids"] for row in true.samples]


def test_nothing_is_decoded_or_copied_from_a_dataset_on_disk(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    hugging_face(lambda path: {"bytes": path.read_bytes(), "path": None}).save_to_disk(tmp_path)
    monkeypatch.setattr(soundfile, "SoundFile", None)
    found = lsm_probe.samples(datasets.load_from_disk(tmp_path).select([2, 0]))
    assert [sample.id for sample in found] == [of_manifest()[2].id, of_manifest()[0].id]
    assert not any(isinstance(sample.audio.content, bytes) for sample in found)
    assert found[0].audio.sha256 == AudioBytes(of_manifest()[2].audio.read_bytes()).sha256


def test_rows_of_a_dataset_may_have_no_audio():
    datasets = pytest.importorskip("datasets")
    held = [None, {"bytes": b"", "path": None}, {"bytes": b"sound", "path": None}, {"bytes": None, "path": None}]
    entries = [{"audio": audio, "text": "hello"} for audio in held]
    data = datasets.Dataset.from_list(entries).cast_column("audio", datasets.Audio())
    with pytest.warns(UserWarning, match="left out 1: row 3: the audio is a dict"):
        found = lsm_probe.samples(data, instruction=SAY, on_error="skip")
    assert [sample.audio and sample.audio.read() for sample in found] == [None, b"", b"sound"]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff"])
def test_every_format_is_read_the_same_from_memory_and_from_a_file(suffix, clip, tmp_path):
    path = clip(tmp_path / f"a.{suffix}", 1.5)
    held = AudioBytes(path.read_bytes())
    for section in ((0.0, None), (0.25, 0.5)):
        np.testing.assert_array_equal(read_audio_file(held, *section), read_audio_file(path, *section), strict=True)
        assert check_audio_file(held, *section) == check_audio_file(path, *section)
    assert held.suffix == {"opus": ".ogg"}.get(suffix, f".{suffix}")


def test_another_rate_is_resampled_like_a_file(tmp_path, waveform):
    soundfile.write(tmp_path / "a.wav", waveform(1.0), 22_050, subtype="FLOAT")
    (sample,) = lsm_probe.samples([(waveform(1.0), 22_050)], instruction=SAY)
    np.testing.assert_array_equal(read_audio(sample), read_audio_file(tmp_path / "a.wav"), strict=True)


def test_a_sample_in_memory_is_immutable_and_can_be_pickled(waveform):
    samples = waveform(0.5)
    (sample,) = lsm_probe.samples([(samples, 16_000)], instruction=SAY)
    before, key = read_audio(sample), sample.utterance
    samples[:] = 0
    again = pickle.loads(pickle.dumps(sample))
    assert again == sample == sample.model_copy(deep=True)
    assert hash(again) == hash(sample)
    assert again.utterance == key
    np.testing.assert_array_equal(read_audio(again), before)
    assert len(repr(sample)) < 300


def test_equal_waveforms_are_one_utterance(waveform):
    twice = [(waveform(0.5), 16_000), (waveform(0.5), 16_000), (waveform(0.5, 1), 16_000), (waveform(0.5), 8_000)]
    keys = [sample.utterance for sample in lsm_probe.samples(twice, instruction=SAY)]
    assert [keys.index(key) for key in keys] == [0, 0, 2, 3]


def test_instructions_are_used_in_turn_and_samples_numbered(waveform):
    found = lsm_probe.samples([(waveform(0.5), 16_000)] * 3, instruction=[SAY, "Repeat."])
    assert [(sample.id, sample.instruction) for sample in found] == [("0", SAY), ("1", "Repeat."), ("2", SAY)]


def test_columns_are_chosen_by_name_and_missing_values_left_out(waveform):
    frame = pd.DataFrame(
        {
            "clip": [waveform(0.5)] * 2,
            "hz": [16_000, 8_000],
            "sentence": ["one", None],
            "begin": [0.25, np.nan],
            "label": ["x", "y"],
            "utt": [7, 8],
            "duration": [9.0, 9.0],
        }
    )
    named = {"audio": "clip", "rate": "hz", "start": "begin", "duration": False, "target": "label", "id": "utt"}
    first, second = lsm_probe.samples(frame, instruction=SAY, **named)
    assert (first.id, first.text, first.target, first.start, first.duration) == ("7", "one", "x", 0.25, None)
    assert (second.text, second.start) == (None, 0.0)
    assert [len(read_audio(sample)) for sample in (first, second)] == [4_000, 16_000]
    assert lsm_probe.samples(frame, instruction=SAY, text=False, **named)[0].text is None


def test_a_cut_of_a_recording_is_read_as_a_section():
    (cut, *_) = cuts().cut_into_windows(0.5)
    (sample,) = lsm_probe.samples(pytest.importorskip("lhotse").CutSet.from_cuts([cut]), text=False)
    assert (sample.start, sample.duration) == (0.0, 0.5)


def test_a_manifest_written_from_memory_has_the_same_data(tmp_path):
    found = made("float32")
    found = [*found, found[0].model_copy(update={"id": "again/and:again"})]
    path = lsm_probe.write_manifest(found, tmp_path / "clips.jsonl")
    back = lsm_probe.read_manifest(path)
    assert fingerprint(back) == fingerprint(found)
    assert len(list((tmp_path / "clips_audio").iterdir())) == 2
    files = lsm_probe.write_manifest(back, tmp_path / "moved.jsonl")
    assert lsm_probe.read_manifest(files) == back
    assert not (tmp_path / "moved_audio").exists()


def test_functions_that_need_files_refuse_audio_in_memory(tmp_path, tiny_llm, waveform):
    found = lsm_probe.samples([{"audio": (waveform(0.5), 16_000), "text": "hello"}], instruction=SAY)
    with (
        pytest.raises(InputError, match=r"in memory.*lsm_probe.write_manifest"),
        manifest_writer(tmp_path / "a") as put,
    ):
        put(found[0])
    with pytest.raises(InputError, match=r"in memory.*lsm_probe.write_manifest"):
        lsm_probe.augment(tiny_llm, found, tmp_path / "augmented")


def test_training_reads_audio_in_memory(tmp_path, tiny_lsm):
    sets = [TrainingSet(samples, tiny_lsm) for samples in (of_manifest(), made("bytes"))]
    for i in range(3):
        true, found = (each[i] for each in sets)
        assert true["prompt"] == found["prompt"]
        assert (true["input_features"] == found["input_features"]).all()
    states = SpeechStates(tmp_path, tiny_lsm)
    states._encode(tiny_lsm, [(of_manifest()[0], tiny_lsm.processor.extract(read_audio(of_manifest()[0])))])
    assert made("bytes")[0] in states


@pytest.mark.parametrize("kind", [list, np.array])
def test_alternative_answers_are_kept(kind):
    rows = [{"audio": b"x", "alternatives": kind(["four", "4"])}, {"audio": b"y", "alternatives": None}]
    found = lsm_probe.samples(pd.DataFrame(rows), instruction=SAY)
    assert [sample.alternatives for sample in found] == [("four", "4"), ()]
    frame = pd.DataFrame(rows).rename(columns={"alternatives": "also"})
    assert lsm_probe.samples(frame, instruction=SAY, alternatives="also")[0].alternatives == ("four", "4")
    assert lsm_probe.samples(pd.DataFrame(rows), instruction=SAY, alternatives=False)[0].alternatives == ()


ROW = {"audio": b"x"}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("clips.jsonl", {}, "clips.jsonl is a path: read a manifest with lsm_probe.read_manifest"),
        ({"audio": []}, {}, "cannot be made from a dict: give a Hugging Face Dataset, a pandas DataFrame"),
        ([], {}, "the source has no rows"),
        ([np.zeros(3)], {}, r"row 0: is a ndarray.*\(waveform, rate\)"),
        ([ROW], {"instruction": None}, "there is no instruction.*the columns are 'audio'"),
        ([ROW], {"instruction": "sentense"}, "'sentense' is not a column.*the columns are 'audio'"),
        ([ROW], {"audio": "wave"}, "audio='wave' is not a column; the columns are 'audio'"),
        ([ROW], {"text": 3}, "text=3 is not a column"),
        ([{"speech": b"x"}], {}, "the audio column is not known.*the columns are 'speech'"),
        ([{"path": "a", "file": "b", "n": 1}], {}, "audio may be 'file' or 'path': name it.*'path', 'file', 'n'"),
        ([{**ROW, "sentence": "a", "transcript": "b"}], {}, "text may be 'transcript' or 'sentence'"),
        ([{**ROW, "duration": 2.0}], {}, "duration=False"),
        ([{"audio": None}], {}, "row 0: names neither 'audio' nor 'text'"),
        ([{"audio": 3}], {}, "row 0: the audio is a int"),
        ([{"audio": np.zeros(9)}], {}, "row 0: .*without a sampling rate"),
        ([{"audio": "https://a/b.wav"}], {}, "row 0: .* is a URL"),
        ([ROW, {"audio": "not/there.wav"}], {}, "row 1: audio not/there.wav does not exist"),
        ([(np.zeros((2, 9)), 16_000)], {}, r"row 0: .*shape \(2, 9\)"),
        ([(np.zeros(9, int), 16_000)], {}, "row 0: .*int64, which does not tell its scale"),
        ([(np.zeros(9), 16.5)], {}, "row 0: the sampling rate is 16.5"),
        ([(np.zeros(9), None)], {}, "row 0: the sampling rate is None"),
        ([(16_000, np.zeros(9))], {}, r"row 0: the audio is \(rate, waveform\): give \(waveform, rate\)"),
        ([{**ROW, "id": 3}, {**ROW, "id": 3}], {}, "row 1: an earlier row has the same id '3'"),
    ],
)
def test_invalid_sources_and_options_are_refused_in_one_line(source, options, message):
    with pytest.raises(InputError, match=message) as error:
        lsm_probe.samples(source, **{"instruction": SAY, **options})
    assert "\n" not in str(error.value)


def test_a_dataset_with_several_splits_is_refused():
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict({"test": hugging_face(str)})
    with pytest.raises(InputError, match=r"has the splits 'test': give one of them, such as data\['test'\]"):
        lsm_probe.samples(splits)


def test_cuts_that_only_lhotse_can_read_are_refused():
    for wrong in (cuts().resample(8_000), cuts().mix(cuts())):
        with pytest.raises(InputError, match=r"row 0: cut .*: let lhotse read it and give rows such as"):
            lsm_probe.samples(wrong, instruction=SAY)
    assert lsm_probe.samples([(cut.load_audio(), 8_000) for cut in cuts().resample(8_000)], instruction=SAY)
    command = pytest.importorskip("lhotse").AudioSource("command", [0], "touch x")
    wrong = list(cuts())
    wrong[0].recording.sources = [command]
    with pytest.raises(InputError, match="is not read"):
        lsm_probe.samples(pytest.importorskip("lhotse").CutSet.from_cuts(wrong))


def test_unusable_rows_can_be_skipped(waveform):
    source = [(waveform(0.5), 16_000), (np.zeros((2, 9)), 16_000)]
    with pytest.warns(UserWarning, match="left out 1: row 1"):
        assert len(lsm_probe.samples(source, instruction=SAY, on_error="skip")) == 1


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (b"", "audio of row 0: is empty"),
        (b"no sound", "audio of row 0: cannot be decoded"),
        ((np.array([0, np.nan]), 16_000), "audio of row 0: the speech holds NaN"),
        ((np.array([0, 3e4]), 16_000), "audio of row 0: .*they look like 16-bit integers"),
        ((np.zeros(900), 500), "audio of row 0: is sampled at 500 Hz"),
    ],
)
def test_problems_of_audio_in_memory_are_reported_like_those_of_a_file(audio, message):
    (sample,) = lsm_probe.samples([{"audio": audio}], instruction=SAY)
    with pytest.raises(InputError, match=f"sample '0': {message}"):
        read_audio(sample)


def test_silence_gives_a_warning(waveform):
    (sample,) = lsm_probe.samples([(np.zeros(900), 16_000)], instruction=SAY)
    with pytest.warns(UserWarning, match="sample '0': audio of row 0: is silent"):
        read_audio(sample)
