"""`lsm-probe diagnose`: the table of verdicts, JSON, several processes, and errors."""

import json
import subprocess
import sys

import pytest

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")


@pytest.fixture(scope="module")
def manifest(samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "clips.jsonl"
    lines = [sample.model_dump_json(exclude_none=True, exclude={"task"}) for sample in samples]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def options(tiny_lsm_folder, manifest):
    lsm = ("--ckpt", tiny_lsm_folder, "--data", manifest, "--device", "cpu")
    return (*lsm, "--max-new-tokens", 4, "--batch-size", 2, "--quick")


def test_diagnose_prints_verdicts_and_what_was_not_measured(lsm_probe_command, options, tmp_path):
    code, stdout, err = lsm_probe_command("diagnose", *options, "--utterances", 3, "--out", tmp_path / "out")
    assert code == 0
    assert "Verdicts" in stdout
    assert "cannot tell" in stdout
    assert "lsm: Only 3 utterances were measured" in stdout
    assert "missing: At least 3 more utterances." in stdout
    assert f"written to {tmp_path / 'out'}: report.html, diagnosis.json" in " ".join(stdout.split())
    assert "expected time: about" in err
    assert "transcription: " in err


def test_two_processes_write_the_same_diagnosis_as_one(lsm_probe_command, options, tmp_path):
    code, stdout, _ = lsm_probe_command("diagnose", *options, "--json", "--out", tmp_path / "one")
    assert code == 0
    command = [*TORCHRUN, "-m", "lsm_probe", "diagnose", *map(str, options), "--json", "--out", str(tmp_path / "two")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert not ended.returncode, ended.stderr
    stored = (tmp_path / "one" / "diagnosis.json").read_text()
    assert json.loads(ended.stdout) == json.loads(stdout) == json.loads(stored)
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--base", "builtin:vanilla_asr"), "--base builtin:vanilla_asr reads speech: give the text LLM inside"),
        (("--ckpt", "nowhere/at/all"), "nowhere/at/all cannot be loaded: there is no folder nowhere"),
        (("--utterances", "0"), "invalid value for '--utterances': Input should be greater than or equal to 1"),
    ],
)
def test_invalid_arguments_give_one_line_and_exit_code_2(
    lsm_probe_command, options, besides_progress, more, message, tmp_path
):
    code, _, err = lsm_probe_command("diagnose", *options, *more, "--out", tmp_path / "out")
    [line] = besides_progress(err)
    assert code == 2
    assert message in line
    assert not (tmp_path / "out" / "diagnosis.json").exists()


def test_a_folder_with_other_files_is_refused(lsm_probe_command, options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    code, _, err = lsm_probe_command("diagnose", *options, "--out", tmp_path / "out")
    assert code == 2
    assert "holds files already: choose another folder" in err
