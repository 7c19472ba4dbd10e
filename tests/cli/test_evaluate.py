"""`lsm-probe evaluate` and `lsm-probe score`: files, tables, and one line for every error."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from lsm_probe.evaluation import EVALUATION, cascade
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.tables import TABLES
from lsm_probe.evaluation.task import builtin_tasks
from lsm_probe.evaluation.transcriber import Transcriber
from lsm_probe.models.identity import WeightsIdentity

PICTURES = EVALUATION.pictures

TEXTS = ["the quick brown fox", "rain falls softly", "the old town sells sea shells", "green"]
FILES = {"result.json", "arrays.npz", "samples.jsonl", *PICTURES}
QUICK = ("--max-new-tokens", 4)


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def manifests(tmp_path, waveform):
    """The folder of the manifests of commands-transcription and commands-place."""
    folder = tmp_path / "manifests" / "commands"
    folder.mkdir(parents=True)
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", waveform(0.5 + i / 2, seed=i), 16_000)
    common = [{"id": f"s{i}", "audio": f"{i}.wav", "text": text} for i, text in enumerate(TEXTS)]
    said = [row | {"instruction": "Transcribe the speech.", "target": row["text"]} for row in common]
    place = [row | {"instruction": "Which room?", "target": "kitchen"} for row in common]
    write(folder / "test.transcription.jsonl", said)
    write(folder / "test.place.jsonl", place)
    return folder.parent


@pytest.fixture
def run(lsm_probe_command, manifests, tmp_path):
    """`run(*checkpoints, tasks=..., out=..., options=...)` evaluates checkpoints."""

    def command(*checkpoints, tasks=("commands-transcription", "commands-place"), out=tmp_path / "out", options=()):
        named = [part for checkpoint in checkpoints for part in ("--ckpt", checkpoint)]
        asked = [part for task in tasks for part in ("--task", task)]
        where = ("--data", manifests, "--out", out, "--device", "cpu")
        return lsm_probe_command("evaluate", *named, *asked, *where, *QUICK, *options)

    return command


@pytest.mark.usefixtures("rendered")
def test_one_checkpoint_writes_predictions_metrics_and_tables(run, files, tiny_lsm_folder, tmp_path):
    code, out, err = run(tiny_lsm_folder)
    assert code == 0, err
    assert files(tmp_path / "out") == FILES
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (found,) = metrics["checkpoints"].values()
    assert found["tasks"].keys() == {"commands-transcription", "commands-place"}
    assert "following_rate" not in found["tasks"]["commands-transcription"]["metrics"]
    assert found["tasks"]["commands-place"]["metrics"]["following_rate"]["n"] == 4
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert {"task", "metric", "value", "ci_low", "ci_high", "n"} < set(table.columns)
    assert "word_error_rate" in out
    assert "4 tokens" in out
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows[:2]] == ["commands-transcription/s0", "commands-transcription/s1"]
    assert all(row.keys() >= {"task", "instruction", "reference", "response", "response_ids"} for row in rows)


def test_several_checkpoints_are_compared(run, files, tiny_lsm_folder, tiny_llm_folder, tmp_path):
    code, out, _ = run(tiny_llm_folder, tiny_lsm_folder, options=["--json"])
    assert code == 0
    printed = json.loads(out)
    assert len(printed["results"]) == 2
    assert printed["comparison"]["pairs"][0]["agreement"].keys() == {"commands-transcription", "commands-place"}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["text_llm"] == str(tiny_llm_folder)
    speaking = metrics["checkpoints"][str(tiny_lsm_folder)]
    assert speaking["agreement_with_text_llm"].keys() == {"commands-transcription", "commands-place"}
    assert files(tmp_path / "out") >= {*TABLES, "comparison.json"}
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {tiny_llm_folder}", f"| {tiny_lsm_folder}"]
    assert len({line.count(" | ") for line in lines}) == 1


class FixedTranscriber(Transcriber):
    def transcribe(self, waveforms, languages):
        return ["the quick brown fox" for _ in waveforms]


def test_a_cascade_is_evaluated_in_the_same_run(run, tiny_lsm_folder, tiny_llm_folder, tmp_path, monkeypatch):
    loaded = []

    def load(name, **running):
        loaded.append((name, running))
        return FixedTranscriber(name, None, None, WeightsIdentity(model_type="whisper"))

    monkeypatch.setattr(cascade, "load_transcriber", load)
    code, out, err = run(tiny_lsm_folder, options=["--cascade", tiny_llm_folder, "--whisper", "tiny"])
    assert code == 0, err
    assert loaded == [("tiny", {"device": "cpu", "dtype": "auto"})]
    name = f"tiny + {tiny_llm_folder}"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["cascade"] == name
    itself, lsm = metrics["checkpoints"][name], metrics["checkpoints"][str(tiny_lsm_folder)]
    assert itself["times_as_fast_as_cascade"] == {"mean": 1, "ci_low": 1, "ci_high": 1}
    ratio = itself["seconds_per_sample"] / lsm["seconds_per_sample"]
    assert lsm["times_as_fast_as_cascade"]["mean"] == pytest.approx(ratio, rel=1e-2)
    assert "speed relative to cascade" in out
    assert "word errors" in out
    assert (tmp_path / "out" / "tiny+llm" / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("llm", "whisper", "message"),
    [
        ("./nothere", "builtin:whisper", "./nothere cannot be loaded: there is no folder nothere in"),
        ("builtin:lm", "builtin:whisper", "--ckpt builtin:lm is unknown"),
        ("builtin:llm", "./nothere", "./nothere cannot be loaded: there is no folder nothere in"),
        (
            "builtin:llm",
            "builtin:wisper",
            "builtin:wisper is not a speech recogniser; the built-in one is builtin:whisper",
        ),
    ],
)
def test_an_invalid_cascade_is_refused_before_the_first_checkpoint_is_loaded(
    run, tiny_lsm_folder, tmp_path, monkeypatch, llm, whisper, message
):
    monkeypatch.setattr("lsm_probe.models.loading._load_pretrained", lambda *_: pytest.fail("loaded"))
    code, _, stderr = run(tiny_lsm_folder, options=["--cascade", llm, "--whisper", whisper])
    assert code == 2
    assert message in stderr
    assert not (tmp_path / "out").exists()


def test_score_needs_no_model(run, lsm_probe_command, tiny_lsm_folder, tiny_llm_folder, tmp_path):
    run(tiny_lsm_folder, out=tmp_path / "a")
    run(tiny_llm_folder, out=tmp_path / "b")
    run(tiny_lsm_folder, tiny_llm_folder, out=tmp_path / "both")
    code, _, err = lsm_probe_command("score", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "again")
    assert code == 0, err
    one_by_one, at_once = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("again", "both"))
    for name, found in at_once["checkpoints"].items():
        assert one_by_one["checkpoints"][name]["tasks"] == found["tasks"]
        assert one_by_one["checkpoints"][name]["agreement_with_text_llm"] == found["agreement_with_text_llm"]


def test_score_reads_the_task_file_again(run, lsm_probe_command, tiny_lsm_folder, tmp_path):
    run(tiny_lsm_folder, out=tmp_path / "a")
    rows = [json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").read_text().splitlines()]
    rows[4]["response"] = "In the kitchen, I think"
    write(tmp_path / "a" / "samples.jsonl", rows)
    (tmp_path / "commands-place.yaml").write_text("metrics: [answer_contained]\n")
    options = ("--task", tmp_path / "commands-place.yaml", "--out", tmp_path / "again")
    code, _, err = lsm_probe_command("score", tmp_path / "a", *options)
    assert code == 0, err
    result = EvaluationResult.load(tmp_path / "again")
    assert list(result.metrics()["commands-place"]) == ["answer_contained"]
    assert result.metrics()["commands-place"]["answer_contained"].value == 25


def test_two_results_of_one_checkpoint_are_refused(run, lsm_probe_command, tiny_lsm_folder, tmp_path):
    for name in ("a", "b"):
        run(tiny_lsm_folder, out=tmp_path / name)
    code, _, err = lsm_probe_command("score", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "again")
    assert (code, err.count("\n")) == (2, 1)
    assert "two of these folders hold results of the same checkpoint" in err


def test_score_does_not_overwrite_predictions(run, lsm_probe_command, tiny_lsm_folder, tmp_path):
    run(tiny_lsm_folder, out=tmp_path / "runs" / "a")
    for out in (tmp_path / "runs", tmp_path / "runs" / "a"):
        code, _, err = lsm_probe_command("score", tmp_path / "runs" / "a", "--out", out)
        assert (code, err.count("\n")) == (2, 1)
        assert "is where the predictions are: choose another folder" in err
    assert EvaluationResult.load(tmp_path / "runs" / "a").samples


def test_list_option_names_every_task(lsm_probe_command):
    code, out, _ = lsm_probe_command("evaluate", "--task", "list")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == builtin_tasks()


def test_the_limit_applies_to_each_task(run, tiny_lsm_folder, tmp_path):
    assert run(tiny_lsm_folder, options=["--limit", 3])[0] == 0
    assert np.unique([row["task"] for row in EvaluationResult.load(tmp_path / "out").samples], return_counts=True)[
        1
    ].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["comands-place"]}, "task 'comands-place' does not exist; did you mean commands-place?"),
        ({"tasks": ["commands-place"] * 2}, "task commands-place is given twice"),
        ({"tasks": ["meld"]}, "task meld: manifest "),
        ({"checkpoints": ()}, "there is nothing to evaluate: give --ckpt or --cascade"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(run, tiny_lsm_folder, change, message):
    change = {"checkpoints": (tiny_lsm_folder,), **change}
    code, _, err = run(*change.pop("checkpoints"), **change)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
