"""`lsm-probe attention`: files, tables, exit codes, and one line for every error."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import lsm_probe
from lsm_probe.probes.attention.result import AttentionResult

HEADS = ("eta_heads.png", "eta_heads.svg", "eta_heads.csv")
QUICK = ("--max-new-tokens", 4)
COMMAND = ("attention", *QUICK)


@pytest.mark.usefixtures("rendered")
def test_one_checkpoint_writes_all_files_into_the_folder(run, files, tiny_lsm_folder, tmp_path):
    out = tmp_path / "out"
    code, stdout, _ = run(tiny_lsm_folder)
    assert code == 0
    assert files(out) == {"result.json", "arrays.npz", "samples.jsonl", "eta.png", "eta.svg", "eta.csv", *HEADS}
    result = AttentionResult.load(out)
    assert len(result.samples) == 4
    assert "instruction proportion" in stdout
    assert f"{result.eta_groups()[0]['eta']:.3f}" in stdout
    assert (out / "eta.png").read_bytes().startswith(b"\x89PNG")
    csv = (out / "eta.csv").read_text().splitlines()
    assert len(csv) == 1 + 2 * result.n_layers
    assert len((out / "eta_heads.csv").read_text().splitlines()) == 1 + result.head_norms[0, :, :, 0].size


def test_text_and_speech_are_compared_with_the_length_matched_control(run, tiny_lsm_folder, tiny_llm_folder, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = run(tiny_llm_folder, tiny_lsm_folder)
    assert code == 0
    comparison = json.loads((out / "comparison.json").read_text())
    assert [pair["same_lengths"] for pair in comparison["pairs"]] == [False, False, True]
    assert f"compare with the length-matched control `{tiny_llm_folder} at length of {tiny_lsm_folder}`" in stderr
    assert f"{tiny_llm_folder} at length of {tiny_lsm_folder}: 4 samples" in stdout
    control = AttentionResult.load(out / "llm-at-length-of-lsm")
    speech = AttentionResult.load(out / "lsm")
    np.testing.assert_array_equal(control.tokens, speech.tokens)


def test_speech_checkpoints_with_the_same_source_lengths_share_one_control(
    run, tiny_lsm_folder, tiny_llm_folder, tmp_path
):
    twin = shutil.copytree(tiny_lsm_folder, tmp_path / "twin")
    code, _, stderr = run(tiny_llm_folder, tiny_lsm_folder, twin)
    assert code == 0, stderr
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {"llm", "lsm", "twin", "llm-at-length-of-lsm"}
    pairs = json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"]
    warnings = {(pair["first"], pair["second"]): pair["warning"] for pair in pairs}
    control = f"compare with the length-matched control `{tiny_llm_folder} at length of {tiny_lsm_folder}`"
    assert warnings[str(tiny_llm_folder), str(tiny_lsm_folder)].endswith(control)
    assert warnings[str(tiny_llm_folder), str(twin)].endswith(control)


def test_convention_options_are_stored_in_the_result(run, tiny_llm_folder, tmp_path):
    flags = {"heads": "mean_of_norms", "segment": "sum", "aggregate": "ratio_of_means", "span": "instruction+template"}
    options = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    assert run(tiny_llm_folder, options=options)[0] == 0
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored["conventions"] == {**flags, "response": "generated"}
    changed = AttentionResult.load(tmp_path / "out")
    np.testing.assert_allclose(stored["eta"]["mean"], changed.eta().mean, atol=1e-6)


def test_stored_responses_are_reused(run, tiny_llm_folder, tmp_path):
    assert run(tiny_llm_folder, out=tmp_path / "a")[0] == 0
    assert run(tiny_llm_folder, out=tmp_path / "b", options=("--responses", tmp_path / "a"))[0] == 0
    a, b = AttentionResult.load(tmp_path / "a"), AttentionResult.load(tmp_path / "b")
    assert a.responses() == b.responses()
    np.testing.assert_array_equal(a.norms, b.norms)


def test_a_refused_run_does_not_change_an_earlier_result(run, tiny_llm_folder, tmp_path):
    out = tmp_path / "out"
    assert run(tiny_llm_folder, options=("--span", "nothing"))[0] == 2
    assert not out.exists()
    assert run(tiny_llm_folder)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for checkpoint, options in (
        (tiny_llm_folder, ("--heads", "none")),
        (tiny_llm_folder, ("--batch-size", 0)),
        (tmp_path / "nowhere", ()),
    ):
        assert run(checkpoint, options=options)[0] == 2
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_refused_run_does_not_change_the_progress_of_another(run, tiny_llm_folder, tmp_path):
    progress = tmp_path / "out" / "progress" / "llm"
    progress.mkdir(parents=True)
    (progress / "batch-000000.npz").write_bytes(b"hours of work")
    assert run(tiny_llm_folder, options=("--span", "all"))[0] == 2
    assert (progress / "batch-000000.npz").read_bytes() == b"hours of work"
    assert run(tiny_llm_folder)[0] == 0
    assert not progress.exists()


def test_user_files_are_never_overwritten_as_results(refusal, tiny_llm_folder, manifest, tmp_path):
    own = tmp_path / "samples.jsonl"
    own.write_text(manifest.read_text())
    line = refusal("attention", "--ckpt", tiny_llm_folder, "--data", own, "--out", tmp_path)
    assert "holds samples.jsonl, which lsm-probe did not write" in line
    assert own.read_text() == manifest.read_text()


def test_a_later_run_removes_the_result_folders_of_an_earlier_one(
    run, files, tiny_lsm_folder, tiny_llm_folder, tmp_path
):
    out = tmp_path / "out"
    assert run(tiny_llm_folder, tiny_lsm_folder)[0] == 0
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"llm", "lsm", "llm-at-length-of-lsm"}
    (out / "llm" / "notes.txt").write_text("mine")
    code, _, stderr = run(tiny_lsm_folder)
    assert code == 0
    pictures = {"eta.png", "eta.svg", "eta.csv", *HEADS}
    assert files(out) == {"result.json", "arrays.npz", "samples.jsonl", "llm"} | pictures
    assert [path.name for path in (out / "llm").iterdir()] == ["notes.txt"]
    assert f"{out} held the results of an earlier run, which are in {out / '.previous'} now" in stderr
    kept = AttentionResult.load(out / ".previous" / "llm")
    assert kept.ids == AttentionResult.load(out).ids
    assert [result.name for result in lsm_probe.read_results([out]).attention] == ["lsm"]


def test_limit_keeps_the_first_samples(run, tiny_llm_folder, tmp_path):
    run(tiny_llm_folder, options=("--limit", 2))
    assert AttentionResult.load(tmp_path / "out").ids == ["s0", "s1"]


def test_a_killed_run_resumes_to_the_same_numbers(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path):
    """A run killed after its second batch and resumed equals an uninterrupted one."""
    arguments = ["attention", "--ckpt", tiny_lsm_folder, "--data", manifest, "--batch-size", 1, *QUICK]
    assert lsm_probe_command(*arguments, "--out", tmp_path / "whole")[0] == 0
    script = (
        "import os, signal, sys\n"
        "from lsm_probe import cli\n"
        "from lsm_probe.runner.progress import Progress\n"
        "put = Progress.put\n"
        "def killed(self, batch, records):\n"
        "    put(self, batch, records)\n"
        "    if batch == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return records\n"
        "Progress.put = killed\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", script, *map(str, arguments), "--out", str(tmp_path / "killed")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert not (tmp_path / "killed" / "result.json").exists()
    assert len(list((tmp_path / "killed" / "progress").rglob("batch-*.npz"))) == 2
    code, _, stderr = lsm_probe_command(*arguments, "--out", tmp_path / "killed", "--resume")
    assert code == 0, stderr
    whole, resumed = AttentionResult.load(tmp_path / "whole"), AttentionResult.load(tmp_path / "killed")
    np.testing.assert_array_equal(whole.norms, resumed.norms)
    assert whole.to_dict() == resumed.to_dict()
    assert not (tmp_path / "killed" / "progress").exists()


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("lsm_probe.models.loading._load_pretrained", lambda *_: pytest.fail("loaded"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin:lm", "--ckpt builtin:lm is unknown; built-in checkpoints are: builtin:llm"),
        ("./lms", "./lms cannot be loaded: there is no folder lms in"),
        (".", "the folder has no config.json"),
    ],
)
@pytest.mark.usefixtures("nothing_is_loaded")
def test_an_invalid_checkpoint_name_is_reported_before_any_is_loaded(
    run, tiny_llm_folder, tmp_path, name, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, stderr = run(tiny_llm_folder, name)
    assert code == 2
    assert message in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_missing_fields_in_the_data_are_reported_before_any_checkpoint_is_loaded(
    run, tiny_llm_folder, tiny_lsm_folder, manifest, rows, write, tmp_path
):
    for first, second, key in ((tiny_llm_folder, tiny_lsm_folder, "audio"), (tiny_lsm_folder, tiny_llm_folder, "text")):
        lacking = [*rows[1:], {k: v for k, v in rows[0].items() if k != key}]
        write(manifest, *map(json.dumps, lacking))
        code, _, stderr = run(first, second)
        assert code == 2
        message = f"1 of 4 samples have no `{key}`, which {second} needs here (first: s0): add it to the manifest"
        assert message in stderr
        assert not (tmp_path / "out").exists()


def test_a_second_process_in_the_same_folder_is_refused(run, tiny_llm_folder, tmp_path):
    import filelock

    out = tmp_path / "out"
    out.mkdir()
    with filelock.FileLock(out / ".lock"):
        code, _, stderr = run(tiny_llm_folder)
    assert code == 2
    assert "another process is writing" in stderr


def test_stereo_at_44_khz_is_converted_and_silence_warns(run, tiny_lsm_folder, manifest, write, tmp_path, waveform):
    stereo = np.stack([waveform(1.0), waveform(1.0, seed=1)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", np.repeat(stereo, 2, 0)[:44_100], 44_100)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    rows = [{"id": n, "instruction": "Translate it.", "audio": f"{n}.wav"} for n in ("stereo", "silent")]
    write(manifest, *map(json.dumps, rows))
    code, _, stderr = run(tiny_lsm_folder)
    assert code == 0
    assert AttentionResult.load(tmp_path / "out").ids == ["stereo", "silent"]
    assert len([line for line in stderr.splitlines() if line.startswith("warning: ") and "silent" in line]) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["attention", "--help"], ["demo", "--help"], ["--version"]])
def test_help_and_version_import_no_heavy_packages(arguments):
    code = (
        "import sys; sys.argv = ['lsm-probe', *sys.argv[1:]]\n"
        "from lsm_probe import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_command_is_installed():
    command = Path(sys.executable).with_name("lsm-probe")
    assert command.exists() or shutil.which("lsm-probe")


def test_bad_lines_are_skipped_and_counted_on_request(run, tiny_llm_folder, manifest, tmp_path):
    manifest.write_text(manifest.read_text() + "{not json\n")
    assert run(tiny_llm_folder)[0] == 2
    code, _, stderr = run(tiny_llm_folder, options=("--on-error", "skip"))
    assert code == 0
    assert f"left out 1: {manifest}, line 5: is not JSON" in stderr
    assert len(AttentionResult.load(tmp_path / "out").samples) == 4
