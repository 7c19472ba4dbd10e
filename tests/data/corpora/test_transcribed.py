"""LibriSpeech, GigaSpeech, Common Voice, LJSpeech: text, section and file of each utterance; bad lines are named."""

import json

import pytest

from lsm_probe.data.corpora import CORPORA
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


def test_librispeech_is_read(read, write, tmp_path):
    chapter = tmp_path / "test-clean" / "121" / "121726"
    write(chapter / "121-121726.trans.txt", "121-121726-0000 ALSO A POPULAR CONTRIVANCE", "121-121726-0001 HARANGUE")
    write(tmp_path / "dev-other" / "1" / "2" / "1-2.trans.txt", "1-2-0000 O'ER")
    utterances, problems = read("librispeech", tmp_path)
    assert problems == []
    assert utterances == [
        Utterance("1-2-0000", "dev-other", "O'ER", audio=tmp_path / "dev-other/1/2/1-2-0000.flac"),
        Utterance(
            "121-121726-0000", "test-clean", "ALSO A POPULAR CONTRIVANCE", audio=chapter / "121-121726-0000.flac"
        ),
        Utterance("121-121726-0001", "test-clean", "HARANGUE", audio=chapter / "121-121726-0001.flac"),
    ]


def test_a_split_that_is_not_asked_for_is_not_read(read, write, tmp_path):
    write(tmp_path / "test-clean" / "1" / "2" / "1-2.trans.txt", "1-2-0000 YES")
    broken = write(tmp_path / "dev-clean" / "1" / "2" / "1-2.trans.txt")
    broken.write_bytes(b"1-2-0000 \xff\n")
    utterances, problems = read("librispeech", tmp_path, ["test-clean"])
    assert [utterance.text for utterance in utterances] == ["YES"]
    assert problems == []
    with pytest.raises(InputError, match=r"dev-clean/1/2/1-2.trans.txt cannot be read"):
        read("librispeech", tmp_path)


def test_ljspeech_takes_the_normalised_text(read, write, tmp_path):
    write(tmp_path / "metadata.csv", "LJ001-0001|In 1465|In fourteen sixty-five", "LJ001-0002|broken")
    utterances, problems = read("ljspeech", tmp_path)
    assert utterances == [
        Utterance("LJ001-0001", "all", "In fourteen sixty-five", audio=tmp_path / "wavs/LJ001-0001.wav")
    ]
    assert problems == [
        f"{tmp_path}/metadata.csv, line 2: has 2 fields instead of id|text|normalised text; correct the line"
    ]


def test_common_voice_4_reads_every_table_and_keeps_quotation_marks(read, write, tmp_path):
    root = tmp_path / "cv-corpus-4" / "zh-CN"
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"
    write(root / "test.tsv", header, 'c\tcommon_voice_1.mp3\t"Quoted, he said.\t2\t0\t\t\t')
    write(root / "invalidated.tsv", header, "c\tcommon_voice_2.mp3\tNo.\t0\t2\t\t\t")
    write(root / "reported.tsv", "sentence\treason", "x\ty")
    utterances, problems = read("common-voice", root)
    assert problems == []
    assert utterances == [
        Utterance(
            "common_voice_1", "test", '"Quoted, he said.', audio=root / "clips" / "common_voice_1.mp3", language="zh"
        ),
        Utterance("common_voice_2", "invalidated", "No.", audio=root / "clips" / "common_voice_2.mp3", language="zh"),
    ]


def test_common_voice_names_bad_rows(read, write, tmp_path):
    root = tmp_path / "en"
    table = write(
        root / "train.tsv",
        "path\tsentence",
        "../../etc/passwd\tUp.",
        "/etc/passwd\tAbsolute.",
        "only-one-field.mp3",
        "a.mp3\tGood.\tand more",
        "\tNo clip.",
        "b.mp3\tGood.",
    )
    utterances, problems = read("common-voice", root)
    assert [utterance.id for utterance in utterances] == ["b"]
    assert [problem.split(": ")[0] for problem in problems] == [f"{table}, line {number}" for number in range(2, 7)]
    assert "'../../etc/passwd' names no file inside" in problems[0]
    assert "'/etc/passwd' names no file inside" in problems[1]
    assert "more or fewer fields than the header" in problems[2]


@pytest.mark.parametrize("folder", ["Common Voice", "clips_of_1999"])
def test_common_voice_needs_the_folder_of_a_language(read, write, tmp_path, folder):
    write(tmp_path / folder / "test.tsv", "path\tsentence")
    with pytest.raises(InputError, match="does not have the name of a language"):
        read("common-voice", tmp_path / folder)


def test_common_voice_without_a_required_column_is_refused(read, write, tmp_path):
    write(tmp_path / "en" / "test.tsv", "path\ttext", "a.mp3\tHello.")
    with pytest.raises(InputError, match=r"test.tsv has no column 'sentence'; check that it is the corpus's own file"):
        read("common-voice", tmp_path / "en")


def segment(number, text, subsets=("{XL}", "{L}"), begin=1.0, end=2.5):
    sid = f"POD1_S{number:07}"
    return {"sid": sid, "speaker": "N/A", "begin_time": begin, "end_time": end, "text_tn": text, "subsets": subsets}


def gigaspeech(root, *audios):
    content = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    (root / "GigaSpeech.json").write_text(json.dumps(content, indent=1))
    return root


def audio(*segments, path="audio/podcast/P0000/POD1.opus"):
    return {"title": "t", "path": path, "aid": "POD1", "duration": 10.0, "subsets": ["{XL}"], "segments": segments}


def test_gigaspeech_is_read(read, tmp_path):
    root = gigaspeech(
        tmp_path,
        audio(
            segment(0, "DOUGLAS <COMMA> WALK THROUGH THE DOOR <PERIOD>"),
            segment(1, "IS IT <QUESTIONMARK>", ["{DEV}"], begin=3, end=4),
            segment(2, "<MUSIC>", ["{DEV}"]),
            segment(3, "<SIL>"),
        ),
        audio(segment(4, "NO <EXCLAMATIONPOINT>", ["{S}"]), path="audio/youtube/Y1.opus"),
    )
    path = tmp_path / "audio/podcast/P0000/POD1.opus"
    with pytest.warns(UserWarning, match="^2 segments of GigaSpeech without speech"):
        utterances, problems = read("gigaspeech", root)
    assert problems == []
    assert utterances == [
        Utterance(
            "POD1_S0000000", "XL", "DOUGLAS, WALK THROUGH THE DOOR.", audio=path, start=1.0, duration=1.5, language="en"
        ),
        Utterance("POD1_S0000000", "L", "DOUGLAS, WALK THROUGH THE DOOR.", audio=path, start=1.0, duration=1.5),
        Utterance("POD1_S0000001", "DEV", "IS IT?", audio=path, start=3.0, duration=1.0),
        Utterance("POD1_S0000004", "S", "NO!", audio=tmp_path / "audio/youtube/Y1.opus", start=1.0, duration=1.5),
    ]
    assert [utterance.id for utterance in read("gigaspeech", root, ["S"])[0]] == ["POD1_S0000004"]


def test_gigaspeech_names_bad_audios_and_segments(read, tmp_path):
    root = gigaspeech(
        tmp_path,
        audio(
            segment(0, "EVIL", ["{../../tmp/x}"]),
            {"sid": "half"},
            segment(2, "GOOD", ["{L}"]),
            segment(3, "NOWHERE", []),
        ),
        audio(segment(4, "UP"), path="../../../etc/passwd"),
        {"aid": "no path"},
        "no audio at all",
    )
    utterances, problems = read("gigaspeech", root)
    assert [utterance.text for utterance in utterances] == ["GOOD"]
    file = root / "GigaSpeech.json"
    assert [line.removeprefix(f"{file}, ").split(":")[0] for line in problems] == [
        "audio 1, segment 1",
        "audio 1, segment 2",
        "audio 1, segment 4",
        "audio 2",
        "audio 3",
        "audio 4",
    ]
    assert "subset '{../../tmp/x}' is not of the form {L}" in problems[0]
    assert "'begin_time' is missing" in problems[1]
    assert "names no file inside" in problems[3]


def test_gigaspeech_is_read_correctly_in_pieces_of_any_size(read, tmp_path, monkeypatch):
    words = 'WORD <COMMA> \\u00e9 \\" ' * 3
    root = gigaspeech(tmp_path, *(audio(*(segment(i * 9 + j, words, ["{L}"]) for j in range(9))) for i in range(30)))
    whole = read("gigaspeech", root)[0]
    assert len(whole) == 270
    from lsm_probe.data.corpora import gigaspeech as module

    for chunk in (997, 4_096, 10_007):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        assert read("gigaspeech", root)[0] == whole


@pytest.mark.parametrize("damage", ["cut", "in the middle"])
def test_a_damaged_gigaspeech_json_is_named(read, tmp_path, damage):
    root = gigaspeech(tmp_path, *(audio(*(segment(i, "A" * 2_000) for i in range(300))) for _ in range(5)))
    text = (root / "GigaSpeech.json").read_text()
    half = len(text) // 2
    (root / "GigaSpeech.json").write_text(text[:half] if damage == "cut" else text[:half] + '"}}]' + text[half:])
    with pytest.raises(InputError, match=r"GigaSpeech.json is not JSON .*; download the file again"):
        read("gigaspeech", root)


def test_gigaspeech_without_audios_is_refused(read, write, tmp_path):
    write(tmp_path / "GigaSpeech.json", '{"dataset": "GigaSpeech"}')
    with pytest.raises(InputError, match="has no list 'audios'"):
        read("gigaspeech", tmp_path)


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if corpus.spoken])
def test_a_root_that_is_not_the_corpus_is_refused_in_one_line(name, tmp_path):
    corpus = CORPORA[name]
    (tmp_path / "en").mkdir()
    (tmp_path / "file").write_text("x")
    for root, message in [
        (tmp_path / "gone", "does not exist; give the folder"),
        (tmp_path / "file", "is a file; give"),
        (tmp_path / "en", "check --root"),
    ]:
        with pytest.raises(InputError, match=message) as info:
            list(corpus.read(root, Problems()))
        assert len(str(info.value).splitlines()) == 1
