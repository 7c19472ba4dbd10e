"""`lsm-probe figure`: the paper's figures and tables from one's own results."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile

from lsm_probe.evaluation import cascade
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.transcriber import Transcriber
from lsm_probe.models.identity import WeightsIdentity
from lsm_probe.probes.attention.result import AttentionResult, eta_difference
from lsm_probe.reports.paper_figures import PAPER_FIGURES
from lsm_probe.runner.result import GROUPS

pytestmark = pytest.mark.usefixtures("rendered")

WHISPER = WeightsIdentity(model_type="whisper")

QUICK = ("--max-new-tokens", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, waveform):
    """Six samples of a task, in the folder where the task expects its manifest."""
    folder = tmp_path_factory.mktemp("data") / "commands"
    folder.mkdir()
    lines = []
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", waveform(0.5 + i / 4, seed=i), 16_000)
        text = " ".join(["the", "quick", "brown", "fox", "sells", "sea", "shells"][: i + 1])
        row = {"id": f"s{i}", "instruction": "Which room?", "audio": f"{i}.wav", "text": text, "target": "kitchen"}
        lines.append(json.dumps(row) + "\n")
    (folder / "test.place.jsonl").write_text("".join(lines))
    return folder / "test.place.jsonl"


class FixedTranscriber(Transcriber):
    def transcribe(self, waveforms, languages):
        return ["the quick brown fox" for _ in waveforms]


@pytest.fixture
def results(lsm_probe_command, manifest, tiny_llm_folder, tiny_lsm_folder, mmlu_folder, tmp_path, monkeypatch):
    """`results(name)`: a folder of results of a text LLM and an LSM, as input of the figure."""
    both = ("--ckpt", tiny_llm_folder, "--ckpt", tiny_lsm_folder)
    monkeypatch.setattr(cascade, "load_transcriber", lambda name, **_: FixedTranscriber(name, None, None, WHISPER))
    asked = ("--task", "commands-place", "--data", manifest.parent.parent, "--cascade", tiny_llm_folder)
    commands = {
        "figure3": ("attention", *both, "--data", manifest, *QUICK),
        "figure5": ("attention", *both, "--data", manifest, *QUICK),
        "figure6": ("alignment", "--ckpt", tiny_lsm_folder, "--data", manifest, "--perplexity", 2, "--device", "cpu"),
        "table2": ("evaluate", *both, *asked, *QUICK),
        "table6": ("text-ability", *both, "--mmlu", mmlu_folder, "--shots", 0, "--device", "cpu"),
        "table7": ("evaluate", *both, *asked, *QUICK),
    }

    def make(name):
        code, _, err = lsm_probe_command(*commands[name], "--out", tmp_path / "results")
        assert code == 0, err
        return tmp_path / "results"

    return make


@pytest.mark.parametrize("name", PAPER_FIGURES)
def test_each_figure_and_table_is_written_with_its_numbers(name, results, lsm_probe_command, tmp_path):
    folder = results(name)
    code, out, err = lsm_probe_command("figure", name, folder, "--out", tmp_path / "paper")
    assert code == 0, err
    suffixes = ("png", "svg", "csv") if name.startswith("figure") else ("csv", "md", "tex")
    assert sorted(path.name for path in (tmp_path / "paper").iterdir()) == sorted(f"{name}.{s}" for s in suffixes)
    assert all(str(tmp_path / "paper" / f"{name}.{suffix}") in out for suffix in suffixes)
    frame = pd.read_csv(tmp_path / "paper" / f"{name}.csv")
    assert len(frame)
    assert np.isfinite(frame.select_dtypes("number").dropna(axis=1, how="all")).all().all()


def test_figure5_shows_the_difference_of_the_last_lsm_from_the_others(results, lsm_probe_command, tmp_path):
    folder = results("figure5")
    assert lsm_probe_command("figure", "figure5", folder, "--out", tmp_path / "paper")[0] == 0
    frame = pd.read_csv(tmp_path / "paper" / "figure5.csv")
    names = list(dict.fromkeys(frame["checkpoint"]))
    first, last = (AttentionResult.load(folder / name) for name in ("llm", "lsm"))
    control = next(path for path in folder.iterdir() if "at-length-of" in path.name)
    assert names[:3] == ["llm", "lsm", "llm at length of lsm"]
    assert names[3:] == ["lsm − llm", "lsm − llm at length of lsm"]
    for i, other in enumerate((first, AttentionResult.load(control))):
        gain = eta_difference(other, last).mean  # three layers, in three of the six groups
        rows = frame[frame["checkpoint"] == names[3 + i]]
        assert rows["mean"].tolist() == pytest.approx(gain.tolist(), abs=2e-6)
        assert len(rows) == min(GROUPS, last.n_layers)


def test_figure5_of_one_checkpoint_and_a_control_of_another_is_refused(results, lsm_probe_command, tmp_path):
    folder = results("figure5")
    shutil.rmtree(folder / "lsm")
    code, _, stderr = lsm_probe_command("figure", "figure5", folder, "--out", tmp_path / "paper")
    assert code == 2
    assert "figure5 compares llm with other checkpoints, and there are none: add result folders" in stderr


def test_results_of_different_dtypes_are_drawn_with_a_warning(results, lsm_probe_command, tmp_path):
    folder = results("figure3")
    stored = folder / "lsm" / "result.json"
    stored.write_text(stored.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    code, _, stderr = lsm_probe_command("figure", "figure3", folder, "--out", tmp_path / "paper")
    assert code == 0
    assert stderr.startswith("warning: dtypes differ (llm: float32, lsm: bfloat16, llm at length of lsm: float32), and")


def test_table2_holds_the_first_metric_of_each_task(results, lsm_probe_command, tmp_path):
    folder = results("table2")
    assert lsm_probe_command("figure", "table2", folder, "--out", tmp_path / "paper")[0] == 0
    frame = pd.read_csv(tmp_path / "paper" / "table2.csv", index_col="model")
    result = EvaluationResult.load(folder / "lsm")
    assert frame.loc["lsm", "Commands, place"] == result.metrics()["commands-place"]["accuracy"].value
    assert frame.loc["lsm", "follows"] == pytest.approx(result.following().value, abs=0.05)


@pytest.mark.parametrize(
    ("name", "made", "message"),
    [
        ("figure6", "figure3", "figure6 needs at least 1 alignment results, and 0 are given: add result folders"),
        ("figure9", "figure3", "invalid value for 'name': 'figure9' is not one of 'figure3', 'figure5',"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(name, made, message, results, refusal, tmp_path):
    assert message in refusal("figure", name, results(made), "--out", tmp_path / "paper")


def test_a_folder_without_results_is_refused(refusal, tmp_path):
    refusal("figure", "figure3", tmp_path, "--out", tmp_path / "paper")
    assert not (tmp_path / "paper").exists()
