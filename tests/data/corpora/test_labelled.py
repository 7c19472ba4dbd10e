"""MELD, Fluent Speech Commands and Snips: labels are those that the evaluation instructions list."""

import json

import pytest

from lsm_probe.data.corpora.labels import labels_of
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError

MELD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"


def test_meld_is_read(read, write, clip, tmp_path):
    table = write(
        tmp_path / "test_sent_emo.csv",
        MELD,
        '1,"Oh, they\u0092re here!",Rachel,joy,positive,0,1,3,19,"00:14:38,127","00:14:40,378"',
        '2,No\u2019s fine,Joey,disgust,negative,12,0,3,19,"00:14:38,127","00:14:40,378"',
        '3,Only a film,Joey,anger,negative,13,0,3,19,"00:14:38,127","00:14:40,378"',
        '4,Bored,Joey,boredom,negative,14,0,3,19,"00:14:38,127","00:14:40,378"',
    )
    folder = tmp_path / "output_repeated_splits_test"
    clip(folder / "dia0_utt1.wav")
    clip(folder / "dia12_utt0.flac")
    (folder / "dia13_utt0.mp4").write_bytes(b"video")
    utterances, problems = read("meld", tmp_path)
    assert utterances == [
        Utterance(
            "dia0_utt1",
            "test",
            "Oh, they\u2019re here!",
            audio=folder / "dia0_utt1.wav",
            answers={"emotion": "{'joy'}"},
        ),
        Utterance(
            "dia12_utt0",
            "test",
            "No\u2019s fine",
            audio=folder / "dia12_utt0.flac",
            answers={"emotion": "{'disgust'}"},
        ),
    ]
    assert [problem.split(": ")[0] for problem in problems] == [f"{table}, line 4", f"{table}, line 5"]
    assert "dia13_utt0.mp4 has no sound file beside it" in problems[0]
    assert 'ffmpeg -i "$f" -ac 1 -ar 16000 "${f%.mp4}.wav"; done' in problems[0]
    assert "'boredom' is none of the labels" in problems[1]


def test_the_suggested_command_extracts_the_audio_of_meld(read, write, tmp_path):
    """Uses a replacement for ffmpeg: the shell must make the file names that the reader expects."""
    import os
    import subprocess

    write(tmp_path / "dev_sent_emo.csv", MELD, "1,Hi,Joey,joy,positive,0,0,3,19,a,b")
    folder = tmp_path / "dev_splits_complete"
    folder.mkdir()
    (folder / "dia0_utt0.mp4").write_bytes(b"video")
    _, problems = read("meld", tmp_path)
    tools = tmp_path / "bin"
    write(tools / "ffmpeg", "#!/bin/sh", 'cp "$2" "$7"').chmod(0o755)
    command = problems[0].split("with: ")[1]
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"})
    utterances, problems = read("meld", tmp_path)
    assert problems == []
    assert [utterance.audio for utterance in utterances] == [folder / "dia0_utt0.wav"]


INTENTS = """activate|lamp|none activate|lights|bedroom activate|lights|kitchen activate|lights|none
activate|lights|washroom activate|music|none bring|juice|none bring|newspaper|none bring|shoes|none bring|socks|none
change_language|Chinese|none change_language|English|none change_language|German|none change_language|Korean|none
change_language|none|none deactivate|lamp|none deactivate|lights|bedroom deactivate|lights|kitchen
deactivate|lights|none deactivate|lights|washroom deactivate|music|none decrease|heat|bedroom decrease|heat|kitchen
decrease|heat|none decrease|heat|washroom decrease|volume|none increase|heat|bedroom increase|heat|kitchen
increase|heat|none increase|heat|washroom increase|volume|none""".replace("\n", " ").split(" ")
FSC = ",path,speakerId,transcription,action,object,location"


def test_the_31_intents_of_fluent_speech_commands_map_to_19_labels(read, write, tmp_path):
    rows = [
        f"{i},wavs/speakers/s/{i:03}.wav,s,Text {i},{','.join(intent.replace('_', ' ').split('|'))}"
        for i, intent in enumerate(INTENTS)
    ]
    assert len(rows) == 31
    write(tmp_path / "data" / "test_data.csv", FSC, *rows)
    utterances, problems = read("fluent-speech-commands", tmp_path)
    assert problems == []
    assert {u.answers["intent"] for u in utterances} == {f"{{{label!r}}}" for label in labels_of("intent")}
    assert utterances[10] == Utterance(
        "010",
        "test",
        "Text 10",
        audio=tmp_path / "wavs/speakers/s/010.wav",
        answers={"intent": "{'change language Chinese'}"},
    )


def test_fluent_speech_commands_names_bad_rows(read, write, tmp_path):
    table = write(
        tmp_path / "data" / "valid_data.csv",
        FSC,
        "0,../../x.wav,s,Up,activate,lamp,none",
        "1,wavs/a.wav,s,Fly,fly,kite,none",
    )
    utterances, problems = read("fluent-speech-commands", tmp_path)
    assert utterances == []
    assert problems[0].startswith(f"{table}, line 2: '../../x.wav' names no file inside")
    assert problems[1].startswith(f"{table}, line 3: 'fly kite' is none of the labels of task 'intent'")


def query(*chunks):
    return {
        "data": [
            {"text": c} if isinstance(c, str) else {"text": c[0], "slot_name": c[1], "entity": c[1]} for c in chunks
        ]
    }


def snips(root, intents, recordings, language="en"):
    (root / "speech_corpus").mkdir(parents=True)
    content = {"language": language, "entities": {}, "intents": {k: {"utterances": v} for k, v in intents.items()}}
    (root / "dataset.json").write_text(json.dumps(content))
    metadata = {str(i): entry for i, entry in enumerate(recordings)}
    (root / "speech_corpus" / "metadata.json").write_text(json.dumps(metadata))
    return root


def recording(text, number):
    return {"text": text, "filename": f"{number}.wav", "worker": {"id": "w", "gender": "f"}}


LIGHTS = {
    "SwitchLightOn": [query("turn on the lights in the ", ("Living Room", "room")), query("lights on")],
    "SwitchLightOff": [query("make the ", ("bedroom", "room"), " dark"), query("off in the ", ("cellar", "room"))],
    "IncreaseBrightness": [query("more light"), query("brighter in the ", ("kitchen", "room"))],
    "DecreaseBrightness": [query("dim it")],
    "SetLightColor": [query("make the ", ("kitchen", "room"), " ", ("red", "color"))],
    "SetLightBrightness": [query("never recorded")],
}


def test_snips_has_its_language(read, tmp_path):
    root = snips(tmp_path, LIGHTS, [recording("more light", 0)], language="fr")
    utterances, _ = read("snips-lights", root)
    assert [utterance.language for utterance in utterances] == ["fr"]


def test_snips_lights_is_read(read, tmp_path):
    texts = [
        "turn on the lights in the Living Room",
        "make the bedroom dark",
        "more light",
        "dim it",
        "lights on",
        "off in the cellar",
        "brighter in the kitchen",
        "make the kitchen red",
    ]
    root = snips(tmp_path / "smart-lights-en-close-field", LIGHTS, [recording(t, i) for i, t in enumerate(texts)])
    with pytest.warns(UserWarning, match="^4 recordings of .* are not of task 'keywords-lights'"):
        utterances, problems = read("snips-lights", root)
    assert problems == []
    assert [(u.id, u.answers["keywords-lights"]) for u in utterances] == [
        ("0", "['turn on', 'living room']"),
        ("1", "['turn off', 'bedroom']"),
        ("2", "['increase', 'brightness']"),
        ("3", "['decrease', 'brightness']"),
    ]
    assert utterances[0] == Utterance(
        "0",
        "all",
        texts[0],
        audio=root / "speech_corpus" / "audio" / "0.wav",
        answers={"keywords-lights": "['turn on', 'living room']"},
    )
    allowed = set(labels_of("keywords-lights"))
    assert {word for u in utterances for word in eval(u.answers["keywords-lights"])} <= allowed


def test_snips_names_bad_recordings(read, tmp_path):
    recordings = [
        recording("lights up", 0),
        recording("dim it", "../../../x"),
        {"text": "dim it"},
        recording("dim it", 3),
    ]
    root = snips(tmp_path / "lights", LIGHTS, recordings)
    utterances, problems = read("snips-lights", root)
    assert [utterance.id for utterance in utterances] == ["3"]
    metadata = root / "speech_corpus" / "metadata.json"
    assert [line.split(": ")[0] for line in problems] == [f"{metadata}, entry '{key}'" for key in range(3)]
    assert "'lights up' is not an utterance of" in problems[0]
    assert "names no file inside" in problems[1]
    assert "'filename' is missing" in problems[2]


@pytest.mark.parametrize(
    ("content", "message"), [("[]", "is a JSON list"), ("{", "is not JSON"), ("{}", "'intents' is missing")]
)
def test_a_snips_dataset_with_another_structure_is_refused(read, tmp_path, content, message):
    root = snips(tmp_path / "lights", LIGHTS, [])
    (root / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=f"dataset.json.* {message}"):
        read("snips-lights", root)


def test_snips_washing_keeps_texts_with_three_of_the_listed_labels(read, tmp_path):
    texts = ["Increase the brightness in the kitchen", "start the delicate programme"]
    root = snips(
        tmp_path, {"Any": [query(text) for text in texts]}, [recording(text, i) for i, text in enumerate(texts)]
    )
    with pytest.warns(UserWarning, match="^1 recordings of .* are not of task 'keywords-washing'"):
        utterances, problems = read("snips-washing", root)
    assert problems == []
    assert [(u.id, u.answers) for u in utterances] == [
        ("0", {"keywords-washing": "['brightness', 'increase', 'kitchen']"})
    ]
