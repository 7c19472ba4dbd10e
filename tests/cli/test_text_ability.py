"""`lsm-probe text-ability`: files, table, forgetting rates, and one line for every error."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.evaluation.text_ability_result import TextAbilityConventions, TextAbilityResult
from lsm_probe.evaluation.text_ability_table import text_ability_table
from lsm_probe.runner.identity import CheckpointIdentity

TEXTS = [("the quick brown fox", "jumps over the lazy dog"), ("rain falls", "softly on the old town")]
COMMAND = ("text-ability",)
FILES = {"result.json", "arrays.npz", "samples.jsonl", "text_ability.csv"}


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"id": f"s{i}", "instruction": "Go on.", "text": t, "target": u} for i, (t, u) in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def mmlu(mmlu_folder):
    """A single subject."""
    for name in ("sociology", "world_religions"):
        for split in ("dev", "test"):
            (mmlu_folder / split / f"{name}_{split}.csv").unlink()
    return mmlu_folder


def test_one_checkpoint_writes_all_files_into_the_folder(run, files, tiny_llm_folder, mmlu, tmp_path):
    code, stdout, stderr = run(tiny_llm_folder, options=("--mmlu", mmlu, "--shots", 1, "--limit", 4))
    assert code == 0, stderr
    out = tmp_path / "out"
    assert files(out) == FILES | {"mmlu_tasks"}
    result = TextAbilityResult.load(out)
    assert result.ids == ["s0", "s1", *(f"mmlu/anatomy/{i}" for i in range(4))]
    assert result.conventions.shots == 1
    for number, digits in ((result.accuracies["stem"], 1), (result.nats, 3), (result.perplexity, 2)):
        assert f"{number.value:.{digits}f} " in stdout
    assert "4 questions of 1 of 57 subjects, 1 shots" in stdout
    assert f"perplexity: 2 texts of {result.tokens} tokens" in stdout
    assert (out / "mmlu_tasks" / "mmlu_anatomy.yaml").exists()
    lines = (out / "text_ability.csv").read_text().splitlines()
    assert lines[0] == "checkpoint,number,mean,ci_low,ci_high,n"
    assert len(lines) == 1 + 4 + 2
    assert [line for line in stderr.splitlines() if "Building" in line or "it/s" in line] == []


def test_several_checkpoints_are_compared_with_the_first(run, files, tiny_llm_folder, tiny_lsm_folder, tmp_path):
    code, stdout, stderr = run(tiny_llm_folder, tiny_lsm_folder)
    assert code == 0, stderr
    assert files(tmp_path / "out") == {"comparison.json", "text_ability.csv", tiny_llm_folder.name, "lsm"}
    (pair,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"]
    assert pair["perplexity"]["difference"]["unit"] == "nats per token"
    assert pair["mmlu"] is None
    assert f"{pair['perplexity']['difference']['mean']:+.3f}" in stdout
    assert f"× {pair['perplexity']['ratio']['mean']:.2f}" in stdout
    assert "STEM" not in stdout


def test_a_forgetting_rate_is_shown_only_for_accuracy_above_chance():
    def result(name, right):
        rows = [{"id": str(i), "subject": "anatomy", "group": "stem", "chosen": "A"} for i in range(200)]
        return TextAbilityResult(
            counts=np.array([[i < right, 1] for i in range(200)], dtype=np.float64),
            clusters=np.arange(200),
            samples=rows,
            checkpoint=CheckpointIdentity(name=name, source="text", template="chat", dtype="float32"),
            data=DataIdentity("made", "0", 200),
            conventions=TextAbilityConventions(shots=5),
        )

    def last_row(*results):
        return [cell.splitlines()[0] for cell in text_ability_table(results).rows[-1]]

    assert last_row(result("a", 120), result("b", 90)) == ["b: forgotten", "25.0", "–", "–", "–", "25.0"]
    assert last_row(result("a", 55), result("b", 44)) == ["b: forgotten", "–", "–", "–", "–", "–"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to measure: give --mmlu FOLDER, --data MANIFEST, or both"),
        (("--mmlu", "nowhere"), "nowhere holds no test/<subject>_test.csv"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--mmlu", "mmlu", "--shots", 9), "--shots 9: mmlu has 5 examples of anatomy; give 0 to 5"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    refusal, tiny_llm_folder, mmlu, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    assert message in refusal("text-ability", "--ckpt", tiny_llm_folder, "--out", "out", *options)


def test_two_processes_give_the_result_of_one(run, tiny_llm_folder, mmlu_folder, manifest, tmp_path):
    options = ("--mmlu", mmlu_folder, "--shots", 1, "--limit", 2, "--batch-size", 1)
    code, _, stderr = run(tiny_llm_folder, options=options)
    assert code == 0, stderr
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    own = ("-m", "lsm_probe", "text-ability", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "two")
    command = [*map(str, (*torchrun, *own, *options))]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert not ended.returncode, ended.stderr
    alone, two = (TextAbilityResult.load(tmp_path / folder) for folder in ("out", "two"))
    assert two.to_dict() == alone.to_dict()
    assert two.samples == alone.samples
