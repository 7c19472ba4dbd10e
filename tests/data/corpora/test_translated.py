"""CoVoST 2 and MuST-C: transcript and translation of each utterance, aligned or refused."""

import pytest

from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


def test_covost_from_the_tables_of_the_official_script(read, write, tmp_path):
    write(
        tmp_path / "covost_v2.en_zh-CN.test.tsv",
        "path\tsentence\ttranslation\tclient_id",
        'common_voice_en_1.mp3\t"Good morning!\t早上好！\tc',
        "common_voice_en_2.mp3\tA tab\\\there.\t标签\tc",
    )
    write(tmp_path / "covost_v2.en_zh-CN.tsv", "path\ttranslation\tsplit", "other.mp3\tis not read again\ttrain")
    utterances, problems = read("covost2", tmp_path)
    assert problems == []
    first, second = utterances
    assert first == Utterance(
        "common_voice_en_1",
        "en_zh-CN.test",
        '"Good morning!',
        audio=tmp_path / "clips" / "common_voice_en_1.mp3",
        language="en",
        target_language="Chinese",
        answers={"translation": "早上好！"},
    )
    assert second.text == "A tab\there."


def test_covost_from_the_released_table_and_validated_tsv(read, write, tmp_path):
    released = write(
        tmp_path / "covost_v2.en_de.tsv",
        "path\ttranslation\tsplit",
        "a.mp3\tEins.\ttrain",
        "b.mp3\tZwei.\ttrain_covost",
        "c.mp3\tDrei.\ttest",
        "d.mp3\tVier.\tdev_covost",
        "e.mp3\tREMOVE\ttest",
        "f.mp3\tSechs.\ttest",
        "c.mp3\tNochmals drei.\ttest",
        "g.mp3\tSieben.\t../../evil",
        "../h.mp3\tAcht.\ttest",
    )
    names = ["c.mp3", "a.mp3", "b.mp3", "d.mp3", "e.mp3", "x.mp3", "../h.mp3"]
    write(tmp_path / "validated.tsv", "client_id\tpath\tsentence", *(f"c\t{name}\tText of {name}" for name in names))
    utterances, problems = read("covost2", tmp_path)
    assert [(u.id, u.split, u.text, u.answers["translation"], u.target_language) for u in utterances] == [
        ("c", "en_de.test", "Text of c.mp3", "Drei.", "German"),
        ("a", "en_de.train", "Text of a.mp3", "Eins.", "German"),
        ("b", "en_de.train", "Text of b.mp3", "Zwei.", "German"),
        ("d", "en_de.dev_covost", "Text of d.mp3", "Vier.", "German"),
    ]
    places = {int(line.split(": ")[0].removeprefix(f"{released}, line ")): line for line in problems}
    assert sorted(places) == [6, 7, 8, 9, 10]
    assert "the translation is REMOVE" in places[6]
    assert f"clip 'f.mp3' is not in {tmp_path}/validated.tsv" in places[7]
    assert "clip 'c.mp3' occurs twice in the table" in places[8]
    assert "split '../../evil' is none of" in places[9]
    assert "names no file inside" in places[10]
    assert [utterance.id for utterance in read("covost2", tmp_path, ["en_de.test"])[0]] == ["c"]


def test_covost_without_a_required_column_or_file_is_refused(read, write, tmp_path):
    table = write(tmp_path / "covost_v2.en_de.tsv", "path\ttranslation\tsplit")
    with pytest.raises(InputError, match=r"validated.tsv does not exist"):
        read("covost2", tmp_path)
    table.write_text("path\tsplit\n")
    with pytest.raises(InputError, match=r"covost_v2.en_de.tsv has no column 'translation'"):
        read("covost2", tmp_path)


def must_c(write, root, part="tst-COMMON", yaml=None, en=("Hello.", "Bye.", ""), de=("Hallo.", "Tschüss.", "Leer.")):
    folder = root / "en-de" / "data" / part / "txt"
    entries = [(3.5, 16.08, "ted_767.wav"), (1, 19, "ted_767.wav"), (2.25, 0.5, "ted_837.wav")]
    lines = [f"- {{duration: {d}, offset: {o}, rW: 9, uW: 0, speaker_id: spk.1, wav: {wav}}}" for d, o, wav in entries]
    write(folder / f"{part}.yaml", *(lines if yaml is None else yaml))
    write(folder / f"{part}.en", *en)
    write(folder / f"{part}.de", *de)
    return folder


def test_mustc_is_read(read, write, tmp_path):
    must_c(write, tmp_path)
    utterances, problems = read("mustc", tmp_path)
    assert problems == []
    first, second, third = utterances
    assert first == Utterance(
        "ted_767-seg-0",
        "en-de.tst-COMMON",
        "Hello.",
        audio=tmp_path / "en-de/data/tst-COMMON/wav/ted_767.wav",
        start=16.08,
        duration=3.5,
        target_language="German",
        answers={"translation": "Hallo."},
    )
    assert (second.id, second.start, second.duration) == ("ted_767-seg-1", 19.0, 1.0)
    assert (third.id, third.text, third.answers["translation"]) == ("ted_837-seg-0", "", "Leer.")


def test_mustc_files_that_disagree_are_one_problem_and_other_parts_are_read(read, write, tmp_path):
    folder = must_c(write, tmp_path, de=("Hallo.",))
    must_c(write, tmp_path, part="dev")
    utterances, problems = read("mustc", tmp_path)
    assert {utterance.split for utterance in utterances} == {"en-de.dev"}
    file = f"{folder}/tst-COMMON"
    assert problems == [
        f"{file}.yaml has 3 lines, {file}.en has 3 lines, {file}.de has 1 lines; "
        "they must have as many, so unpack the corpus again"
    ]


def test_mustc_splits_lines_at_newlines_only(read, write, tmp_path):
    must_c(write, tmp_path, en=("One\u2028still\rone.", "Two.", "Three."))
    utterances, problems = read("mustc", tmp_path)
    assert problems == []
    assert [utterance.text for utterance in utterances] == ["One\u2028still\rone.", "Two.", "Three."]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("- {duration: 1, offset: 0, wav: ../../../../etc/passwd}", "names no file inside"),
        ("- {duration: 1, offset: 0}", "'wav' is missing"),
        ("- {duration: long, offset: 0, wav: a.wav}", "'duration' is 'long'"),
        ("- !!python/object/apply:os.system [touch ran]", "is not YAML"),
        ("- {duration: 1", "is not YAML"),
        ("duration: 1", "is not one segment"),
        ("", "is not one segment"),
    ],
)
def test_mustc_names_a_bad_segment(read, write, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    good = "- {duration: 1, offset: 0, wav: a.wav}"
    folder = must_c(write, tmp_path, yaml=[line, good], en=("A", "B"), de=("C", "D"))
    utterances, problems = read("mustc", tmp_path)
    assert [utterance.text for utterance in utterances] == ["B"]
    assert len(problems) == 1
    assert problems[0].startswith(f"{folder}/tst-COMMON.yaml, line 1: ")
    assert message in problems[0]
    assert not (tmp_path / "ran").exists()


def test_an_unknown_language_code_is_a_problem(read, write, tmp_path):
    folder = tmp_path / "en-xx" / "data" / "dev" / "txt"
    for ending in ("yaml", "en", "xx"):
        write(folder / f"dev.{ending}", "")
    utterances, problems = read("mustc", tmp_path)
    assert utterances == []
    assert problems[0].startswith(f"{folder.parent}: 'xx' is not a language; write ")
