"""Every built-in task, from its corpus on disk to its metrics, with the command line only.

A manifest made by `lsm-probe data NAME --out manifests/NAME` must be where the task expects it.
"""

import json
import math

import pytest

from lsm_probe.data import speech
from lsm_probe.evaluation.scoring import FOLLOWING, Predictions, check, score
from lsm_probe.evaluation.task import builtin_tasks, read_task, read_tasks

OF_COMMANDS = ("french", "german", "politeness", "question", "sentiment", "spanish")
"""Tasks of builtin:commands and of the study, whose manifests are answers of a text LLM and no corpus."""
TASKS = {name: read_task(name) for name in builtin_tasks() if name not in OF_COMMANDS}


def librispeech(root, write, clip):
    texts = ["HE HOPED THERE WOULD BE STEW FOR DINNER", "STUFF IT INTO YOU HIS BELLY COUNSELLED HIM"]
    for part in ("test-clean", "test-other"):
        chapter = root / part / "1089" / "134686"
        names = [f"1089-134686-000{i}" for i in range(len(texts))]
        write(chapter / "1089-134686.trans.txt", *map(" ".join, zip(names, texts, strict=True)))
        for name in names:
            clip(chapter / f"{name}.flac")
    return root


def ljspeech(root, write, clip):
    write(root / "metadata.csv", "LJ001-0001|In 1465|In fourteen sixty-five", "LJ001-0002|Being modern|being modern")
    for name in ("LJ001-0001", "LJ001-0002"):
        clip(root / "wavs" / f"{name}.wav")
    return root


def covost2(root, write, clip):
    """Inside the folder of Common Voice 4.0, with a released table for each language."""
    names = [f"common_voice_en_{i}.mp3" for i in (1, 2)]
    texts = ["The man goes to the park with his dog.", "She is not here and the door is open."]
    translations = {
        "de": ["Der Mann geht mit dem Hund in den Park.", "Sie ist nicht hier und die Tür ist offen."],
        "zh-CN": ["男人带着狗去公园。", "她不在这里，门开着。"],
    }
    write(root / "validated.tsv", "client_id\tpath\tsentence", *map("c\t{}\t{}".format, names, texts))
    for language, translated in translations.items():
        rows = map("{}\t{}\ttest".format, names, translated)
        write(root / f"covost_v2.en_{language}.tsv", "path\ttranslation\tsplit", *rows)
    for name in names:
        clip(root / "clips" / name)
    return root


def mustc(root, write, clip):
    translations = {
        "es": ["El hombre va al parque con su perro.", "Ella no lo espera y la puerta es grande."],
        "fr": ["Il va au parc avec le chien.", "Elle est dans la maison avec les enfants."],
    }
    for language, translated in translations.items():
        folder = root / f"en-{language}" / "data" / "tst-COMMON"
        segment = "- {{duration: 0.5, offset: {}, rW: 9, uW: 0, speaker_id: spk.1, wav: ted_1096.wav}}".format
        write(folder / "txt" / "tst-COMMON.yaml", segment(0), segment(0.75))
        write(folder / "txt" / "tst-COMMON.en", "He goes to the park with the dog.", "She is in the house.")
        write(folder / "txt" / f"tst-COMMON.{language}", *translated)
        clip(folder / "wav" / "ted_1096.wav", 1.5)
    return root


def meld(root, write, clip):
    write(
        root / "test_sent_emo.csv",
        "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime",
        '1,"Oh, they are here!",Rachel,joy,positive,0,0,3,19,"00:14:38,127","00:14:40,378"',
        '2,Leave me alone,Joey,anger,negative,0,1,3,19,"00:14:38,127","00:14:40,378"',
    )
    for i in range(2):
        clip(root / "output_repeated_splits_test" / f"dia0_utt{i}.wav")
    return root


def fluent_speech_commands(root, write, clip):
    write(
        root / "data" / "test_data.csv",
        ",path,speakerId,transcription,action,object,location",
        "0,wavs/speakers/4Bo/1.wav,4Bo,Turn on the lights,activate,lights,kitchen",
        "1,wavs/speakers/4Bo/2.wav,4Bo,Speak Chinese,change language,Chinese,none",
    )
    for i in (1, 2):
        clip(root / "wavs" / "speakers" / "4Bo" / f"{i}.wav")
    return root


def snips(root, write, clip, said):
    """`said`: intent -> an utterance in chunks, each a text or a pair of text and name of its slot."""
    chunks = {
        intent: [{"text": c} if isinstance(c, str) else {"text": c[0], "slot_name": c[1]} for c in utterance]
        for intent, utterance in said.items()
    }
    intents = {intent: {"utterances": [{"data": data}]} for intent, data in chunks.items()}
    texts = ["".join(chunk["text"] for chunk in data) for data in chunks.values()]
    metadata = {str(i): {"text": text, "filename": f"{i}.wav"} for i, text in enumerate(texts)}
    write(root / "dataset.json", json.dumps({"language": "en", "intents": intents}))
    write(root / "speech_corpus" / "metadata.json", json.dumps(metadata))
    for recording in metadata.values():
        clip(root / "speech_corpus" / "audio" / recording["filename"])
    return root


def snips_lights(root, write, clip):
    kitchen = ["turn on the lights in the ", ("kitchen", "room")]
    return snips(root, write, clip, {"SwitchLightOn": kitchen, "DecreaseBrightness": ["dim it"]})


def snips_washing(root, write, clip):
    return snips(root, write, clip, {"Any": ["increase the brightness in the kitchen"]})


def question_set(file, *rows):
    """Text only: speech is synthesised when it is prepared."""
    return lambda root, write, clip: write(root / file, *map(json.dumps, rows))


LAYOUTS = {
    "librispeech": librispeech,
    "ljspeech": ljspeech,
    "covost2": covost2,
    "mustc": mustc,
    "meld": meld,
    "fluent-speech-commands": fluent_speech_commands,
    "snips-lights": snips_lights,
    "snips-washing": snips_washing,
    "boolq": question_set(
        "dev.jsonl",
        {"question": "is it raining", "title": "Rain", "passage": "It rains.", "answer": True},
        {"question": "is it snowing", "title": "Rain", "passage": "It rains.", "answer": False},
    ),
    "webglm-qa": question_set(
        "test.jsonl",
        {
            "question": "Why does it rain?",
            "answer": "Clouds cool down [1].",
            "references": ["Clouds cool.", "It pours."],
        },
        {"question": "Why is it dark?", "answer": "It is night [2].", "references": ["Clouds cool.", "It is night."]},
    ),
    "llama-questions": question_set(
        "llama_questions.jsonl",
        {"question": "What is the capital of France?", "answer": "Paris"},
        {"question": "Who was the first man on the moon?", "answer": "Neil Armstrong"},
    ),
    "web-questions": question_set(
        "web_questions.jsonl",
        {"url": "u", "question": "what did they call him?", "answer": ["Benjamin Franklin", "Ben"]},
        {"url": "u", "question": "where is it?", "answer": ["Rome"]},
    ),
}
"""Folder of the manifests -> what writes the corpus there is, and gives its `--root`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def manifests(folder, write, clip, waveform, lsm_probe_command, monkeypatch):
    """The manifests of all tasks, in a folder for each corpus, made once with a fast voice."""
    monkeypatch.setattr(speech, "synthesize_text", lambda text, voice, **how: (waveform(0.5), 16_000))
    for corpus in {task.manifest.parts[0] for task in TASKS.values()}:
        out = folder / "manifests" / corpus
        if out.exists():
            continue
        if corpus == "commands":  # with its own labels
            code, _, stderr = lsm_probe_command("data", corpus, "--out", out, "--count", 240, "--workers", 1)
        else:
            root = LAYOUTS[corpus](folder / corpus, write, clip)
            workers = ["--workers", 1] if root.is_file() else []
            code, _, stderr = lsm_probe_command("data", corpus, "--root", root, "--out", out, *workers)
        assert code == 0, stderr
    return folder / "manifests"


@pytest.fixture
def tasks(folder, write, tiny_bert_folder):
    """The `--task` value for each: its name, or a file that names a local BERT."""

    def given(task):
        if "bert_score" not in task.metrics:
            return task.name
        settings = task.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
        settings |= {"bert_model": str(tiny_bert_folder), "bert_layer": 1}
        return str(write(folder / f"{task.name}.yaml", json.dumps(settings)))  # JSON is YAML too

    return {name: given(task) for name, task in TASKS.items()}


@pytest.fixture
def evaluated(folder, manifests, tasks, lsm_probe_command, tiny_lsm_folder):
    """The output folder of an evaluation of all tasks together, made once."""
    out = folder / "evaluated"
    if not out.exists():
        arguments = [part for task in tasks.values() for part in ("--task", task)]
        arguments += ["--data", manifests, "--limit", 2, "--max-new-tokens", 4, "--out", out]
        code, _, stderr = lsm_probe_command("evaluate", "--ckpt", tiny_lsm_folder, *arguments)
        assert code == 0, stderr
    return out


@pytest.mark.parametrize("name", TASKS)
def test_a_corpus_on_disk_becomes_metrics(name, evaluated, manifests):
    task = TASKS[name]
    (checkpoint,) = json.loads((evaluated / "metrics.json").read_text())["checkpoints"].values()
    metrics = checkpoint["tasks"][name]["metrics"]
    rows = [json.loads(line) for line in (evaluated / "samples.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["task"] == name]
    assert set(metrics) == {*task.metrics, *([FOLLOWING] if task.has_form else [])}
    for metric in task.metrics:
        assert math.isfinite(metrics[metric]["value"]), metric
        assert metrics[metric]["n"] == len(rows)
    targets = [json.loads(line)["target"] for line in (manifests / task.manifest).read_text().splitlines()]
    assert [row["reference"] for row in rows] == targets[:2]
    assert any(row["response"] for row in rows)


@pytest.mark.parametrize("name", TASKS)
def test_the_reference_answers_of_a_corpus_score_100_percent(name, manifests, tasks):
    """The corpus's answers, the instruction and the task's parser fit together."""
    (task,), samples = read_tasks([tasks[name]], data=manifests)
    check([task], samples)
    rows = [{"reference": s.target, "response": s.target, "alternatives": s.alternatives} for s in samples]
    found = score(Predictions(task, rows))
    for metric in found:
        best = 0 if metric.startswith("word_error_rate") else 100
        assert found[metric].value == pytest.approx(best, abs=1e-3), metric
    if task.labels and name not in ("commands-device", "commands-place", "commands-keywords"):  # requested by kind
        assert all(repr(label) in sample.instruction for label in task.labels for sample in samples)
