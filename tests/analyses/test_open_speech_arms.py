"""The committed results of the arms on open speech give the tables of their page."""

import gzip
import json
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lsm_probe.diagnosis.verdict import Verdict
from lsm_probe.reports.collection import read_results
from lsm_probe.reports.verdicts import find_verdicts

FOLDER = Path(__file__).parents[2] / "analyses" / "open_speech"


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    with tarfile.open(FOLDER / "arms.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def script(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def test_the_claims_follow_from_the_arrays(diagnosis, tmp_path):
    script("claims")["main"](diagnosis, tmp_path / "claims.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "claims.csv"), pd.read_csv(FOLDER / "claims.csv"), atol=1e-6, rtol=0
    )


@pytest.fixture
def with_imports(monkeypatch):
    """Lets scripts import each other, although another study has modules of the same names."""
    names = ("claims", "each_kind")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("with_imports")
@pytest.mark.parametrize(
    ("name", "archives", "table"),
    [
        ("kinds", ["kinds"], "kinds"),
        ("ways", ["ways"], "ways"),
        ("robustness", ["natural", "disturbed"], "disturbed"),
    ],
)
def test_the_other_tables_follow_from_the_arrays(name, archives, table, tmp_path):
    for each in archives:
        with tarfile.open(FOLDER / f"{each}.tar.xz") as archive:
            archive.extractall(tmp_path / each, filter="data")
    script(name)["main"](*(tmp_path / each for each in archives), tmp_path / "found.csv")
    found, committed = (pd.read_csv(path) for path in (tmp_path / "found.csv", FOLDER / f"{table}.csv"))
    pd.testing.assert_frame_equal(found, committed, atol=1e-5, rtol=0)


def test_each_clip_is_asked_all_kinds_of_instruction(tmp_path):
    rows = [{"id": f"clip-{i}", "audio": f"{i}.flac", "text": "some words", "task": "title"} for i in range(30)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = script("each_kind")
    made["main"](tmp_path / "asked.jsonl", tmp_path / "each_kind.jsonl")
    asked = pd.read_json(tmp_path / "each_kind.jsonl", lines=True)
    assert len(asked) == made["CLIPS"] * 5
    assert set(asked.groupby("audio")["task"].nunique()) == {5}
    assert asked["instruction"].nunique() == 5


def test_the_page_shows_the_numbers_of_the_arms():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert script("page")["filled"](page) == page


def test_the_verdicts_rest_on_the_arrays(diagnosis):
    """D_i of every arm from the stored log-probabilities alone, in float64."""
    for found in json.loads((FOLDER / "arms.json").read_text(encoding="utf-8"))["checkpoints"]:
        name = found["checkpoint"].replace(":", "-")
        log_probs = np.load(diagnosis / "sensitivity" / name / "arrays.npz")["instruction_log_probs"].astype(float)
        own = log_probs[:, 0] - np.log(np.nanmean(np.exp(log_probs), 1))
        evidence = {item["key"]: item["value"] for item in found["evidence"]}
        assert evidence["instruction_sensitivity"] == pytest.approx(np.nanmean(own, 1).mean(), abs=1e-6)


def test_the_committed_verdicts_follow_the_rules(diagnosis):
    committed = {each["checkpoint"]: each for each in json.loads((FOLDER / "arms.json").read_text())["checkpoints"]}
    for found in find_verdicts(read_results([diagnosis]), "builtin:llm"):
        stored = Verdict.from_dict(committed[found.checkpoint])
        assert (stored.verdict, stored.warnings) == (found.verdict, list(found.warnings))
        assert [each.repeats for each in stored.by_task] == [each.repeats for each in found.by_task]


def test_disturbed_clips_have_the_stated_noise_and_length():
    made = script("disturbed")
    wave = np.sin(np.arange(160_000, dtype=np.float32) / 10) / 4
    for decibels in (20, 5):
        noise = made["noise"](decibels)(wave, np.random.default_rng(0)) - wave
        assert 10 * np.log10(np.mean(wave**2) / np.mean(noise**2)) == pytest.approx(decibels, abs=0.1)
    faster = made["speed"](1.25)(wave, np.random.default_rng(0))
    assert len(faster) == pytest.approx(len(wave) / 1.25, abs=2)


def test_true_answers_are_those_of_the_corpora(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for folder in ("meld", "boolq"):
        (tmp_path / folder).mkdir()
    table = "Utterance,Emotion,Sentiment\nFine.,neutral,neutral\nOh my God!,joy,positive\n"
    (tmp_path / "train_sent_emo.csv").write_text(table, encoding="utf-8")
    with tarfile.open(tmp_path / "meld" / "meld_csv.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "train_sent_emo.csv", "train_sent_emo.csv")
    question = {"question": "is rain wet", "passage": "Rain is water.", "answer": True}
    with gzip.open(tmp_path / "boolq" / "dev.jsonl.gz", "wt") as file:
        file.write(json.dumps(question))
    texts = ["Oh my God!", "Is rain wet?", "A plain sentence.", "Another plain sentence."]
    rows = [{"id": f"{i}", "text": text, "audio": "a.flac", "target": text} for i, text in enumerate(texts)]
    (tmp_path / "open.jsonl").write_text("\n".join(map(json.dumps, rows)))
    script("true_answers")["main"](tmp_path, tmp_path / "open.jsonl", tmp_path / "true.jsonl")
    made = [json.loads(line) for line in (tmp_path / "true.jsonl").read_text().splitlines()]
    found = {row["id"]: row["target"] for row in made}
    assert len(found) == 4
    assert {key: found.get(key) for key in ("0-emotion", "0-sentiment", "1-yes_no")} == {
        "0-emotion": "joy",
        "0-sentiment": "positive",
        "1-yes_no": "yes",
    }
    assert "Rain is water." in next(row["instruction"] for row in made if row["id"] == "1-yes_no")
    assert all(row["audio"] == str(tmp_path / "a.flac") for row in made)
