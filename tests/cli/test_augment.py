"""`lsm-probe augment`: files, options and errors."""

import json

import pytest

from lsm_probe.data.augmentation import shards
from lsm_probe.data.manifest import read_manifest

QUICK = ("--max-new-tokens", 6, "--max-prompt-tokens", 500, "--keep", "all")


@pytest.fixture
def manifest(tmp_path):
    texts = [
        "the quick brown fox",
        "rain falls softly",
        "the old town sells sea shells",
        "green",
        "my forest",
        "spring",
    ]
    rows = [{"id": f"s{i}", "instruction": "unused", "text": text} for i, text in enumerate(texts)]
    path = tmp_path / "sentences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_augment_writes_manifest_report_config_and_shards(
    lsm_probe_command, files, tiny_llm_folder, manifest, tmp_path
):
    out = tmp_path / "out"
    code, stdout, stderr = lsm_probe_command(
        "augment", "--data", manifest, "--llm", tiny_llm_folder, "--out", out, *QUICK
    )
    assert code == 0
    assert files(out) == {"manifest.jsonl", "report.json", "config.yaml", "shards"}
    assert "self-powered data by task" in stdout
    assert "tokens/s" in stdout
    assert "tokens/s" in stderr
    assert {sample.id for sample in read_manifest(out / "manifest.jsonl")} <= {f"s{i}" for i in range(6)}


def test_with_json_stdout_has_the_report_only(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    code, stdout, _ = lsm_probe_command(
        *("augment", "--data", manifest, "--llm", tiny_llm_folder, "--out", tmp_path / "out", "--json", *QUICK)
    )
    assert code == 0
    report = json.loads(stdout)
    assert report["samples"] == 6
    assert report == json.loads((tmp_path / "out" / "report.json").read_text()) | {"left_out": []}


def test_task_and_instruction_file_are_used(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    pool = tmp_path / "mine.yaml"
    pool.write_text("tasks: [{task: rhyme, instructions: [Find a rhyme.]}, {task: shout, instructions: [Shout.]}]")
    run = ("augment", "--data", manifest, "--llm", tiny_llm_folder, "--instructions", pool, "--task", "shout", *QUICK)
    assert lsm_probe_command(*run, "--out", tmp_path / "out")[0] == 0
    rows, _ = shards.read_shards(tmp_path / "out" / "shards")
    assert set(rows["instruction"].to_pylist()) == {"Shout."}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep", "some"), "invalid value for '--keep': 'some' is not one of 'punctuation', 'finished', 'all'"),
        (("--task", "juggling"), "task 'juggling' is not in the instruction pool"),
        (("--instructions", "nowhere.yaml"), "nowhere.yaml does not exist"),
        (("--template", "mine"), "--template 'mine' is unknown"),
        (("--data", "nowhere.jsonl"), "manifest nowhere.jsonl does not exist"),
        (("--llm", "builtin:untrained"), "is an LSM; give the text LLM"),
        (("--on-error", "maybe"), "invalid value for '--on-error': 'maybe' is not one of 'fail', 'skip'"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line_without_output(
    refusal, tiny_llm_folder, tiny_lsm_folder, manifest, tmp_path, arguments, message
):
    arguments = tuple(tiny_lsm_folder if a == "builtin:untrained" else a for a in arguments)
    common = ("augment", "--data", manifest, "--llm", tiny_llm_folder, "--out", tmp_path / "out", *QUICK)
    assert message in refusal(*common, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_gives_one_line_and_exit_code_1(
    lsm_probe_command, tiny_llm_folder, manifest, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    run = ("augment", "--data", manifest, "--llm", tiny_llm_folder, "--out", tmp_path / "out", *QUICK)
    with monkeypatch.context() as patched:
        patched.setattr(shards.pq, "write_table", full)
        code, _, stderr = lsm_probe_command(*run)
    assert code == 1
    assert "error: the disk is full" in stderr.splitlines()[-1]
    assert not list((tmp_path / "out" / "shards").iterdir())
    assert lsm_probe_command(*run, "--resume")[0] == 0
