"""The command line through its own door: files, tables, exit codes and one line for every mistake."""

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


@pytest.fixture
def manifest(tmp_path, waveform):
    """Four spoken samples."""
    rows = []
    for i, text in enumerate(["the quick brown fox", "rain falls softly", "the old town sells sea shells", "green"]):
        soundfile.write(tmp_path / f"{i}.wav", waveform(0.5 + i, seed=i), 16_000)
        rows.append({"id": f"s{i}", "instruction": "Translate the speech.", "audio": f"{i}.wav", "text": text})
    return write(tmp_path / "clips.jsonl", rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


HEADS = ("eta_heads.png", "eta_heads.svg", "eta_heads.csv")
QUICK = ("--max-new-tokens", 4)


def test_one_checkpoint_writes_everything_into_the_folder(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path):
    out = tmp_path / "out"
    code, stdout, _ = lsm_probe_command(
        "attention", "--ckpt", tiny_lsm_folder, "--data", manifest, "--out", out, *QUICK
    )
    assert code == 0
    files = {"result.json", "arrays.npz", "samples.jsonl", "eta.png", "eta.svg", "eta.csv", *HEADS}
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == files
    result = AttentionResult.load(out)
    assert len(result.samples) == 4
    assert "instruction proportion" in stdout
    assert f"{result.eta_groups()[0]['eta']:.3f}" in stdout
    assert (out / "eta.png").read_bytes().startswith(b"\x89PNG")
    csv = (out / "eta.csv").read_text().splitlines()
    assert len(csv) == 1 + 2 * result.n_layers
    assert len((out / "eta_heads.csv").read_text().splitlines()) == 1 + result.head_norms[0, :, :, 0].size


def test_text_and_speech_are_compared_with_the_length_matched_control(
    lsm_probe_command, tiny_lsm_folder, tiny_llm_folder, manifest, tmp_path
):
    out = tmp_path / "out"
    code, stdout, stderr = lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--ckpt", tiny_lsm_folder, "--data", manifest, "--out", out, *QUICK
    )
    assert code == 0
    comparison = json.loads((out / "comparison.json").read_text())
    assert [pair["same_lengths"] for pair in comparison["pairs"]] == [False, False, True]
    assert f"compare with the length-matched control `{tiny_llm_folder} at length of {tiny_lsm_folder}`" in stderr
    assert f"{tiny_llm_folder} at length of {tiny_lsm_folder}: 4 samples" in stdout
    control = AttentionResult.load(out / "llm-at-length-of-lsm")
    speech = AttentionResult.load(out / "lsm")
    np.testing.assert_array_equal(control.tokens, speech.tokens)


def test_speech_checkpoints_with_the_same_source_lengths_share_one_control(
    lsm_probe_command, tiny_lsm_folder, tiny_llm_folder, manifest, tmp_path
):
    twin = tmp_path / "twin"
    shutil.copytree(tiny_lsm_folder, twin)
    checkpoints = [part for folder in (tiny_llm_folder, tiny_lsm_folder, twin) for part in ("--ckpt", folder)]
    code, _, stderr = lsm_probe_command("attention", *checkpoints, "--data", manifest, "--out", tmp_path / "o", *QUICK)
    assert code == 0, stderr
    folders = {path.name for path in (tmp_path / "o").iterdir() if path.is_dir()}
    assert folders == {"llm", "lsm", "twin", "llm-at-length-of-lsm"}
    pairs = json.loads((tmp_path / "o" / "comparison.json").read_text())["pairs"]
    warnings = {(pair["first"], pair["second"]): pair["warning"] for pair in pairs}
    control = f"compare with the length-matched control `{tiny_llm_folder} at length of {tiny_lsm_folder}`"
    assert warnings[str(tiny_llm_folder), str(tiny_lsm_folder)].endswith(control)
    assert warnings[str(tiny_llm_folder), str(twin)].endswith(control)


def test_json_goes_to_stdout_and_nothing_else_does(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    code, stdout, _ = lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out", "--json", *QUICK
    )
    assert code == 0
    printed = json.loads(stdout)
    assert printed["results"][0] == json.loads((tmp_path / "out" / "result.json").read_text())


def test_conventions_reach_the_result(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    flags = {"heads": "mean_of_norms", "segment": "sum", "aggregate": "ratio_of_means", "span": "instruction+template"}
    arguments = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    code, _, _ = lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out", *QUICK, *arguments
    )
    assert code == 0
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored["conventions"] == {**flags, "response": "generated"}
    changed = AttentionResult.load(tmp_path / "out")
    np.testing.assert_allclose(stored["eta"]["mean"], changed.eta().mean, atol=1e-6)


def test_stored_responses_are_taken_again(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    first = ("attention", "--ckpt", tiny_llm_folder, "--data", manifest)
    assert lsm_probe_command(*first, "--out", tmp_path / "a", *QUICK)[0] == 0
    assert lsm_probe_command(*first, "--out", tmp_path / "b", "--responses", tmp_path / "a")[0] == 0
    a, b = AttentionResult.load(tmp_path / "a"), AttentionResult.load(tmp_path / "b")
    assert a.responses() == b.responses()
    np.testing.assert_array_equal(a.norms, b.norms)


def test_a_refused_run_leaves_an_earlier_result_alone(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    out = tmp_path / "out"
    arguments = ("attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", out, *QUICK)
    assert lsm_probe_command(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    elsewhere = [tmp_path / "nowhere" if part == tiny_llm_folder else part for part in arguments]
    for wrong in ([*arguments, "--heads", "none"], [*arguments, "--batch-size", 0], elsewhere):
        assert lsm_probe_command(*wrong)[0] == 2
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_refused_run_leaves_the_progress_of_another_alone(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    progress = tmp_path / "out" / "progress" / "llm"
    progress.mkdir(parents=True)
    (progress / "batch-000000.npz").write_bytes(b"hours of work")
    arguments = ("attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out", *QUICK)
    assert lsm_probe_command(*arguments, "--span", "all")[0] == 2
    assert (progress / "batch-000000.npz").read_bytes() == b"hours of work"
    assert lsm_probe_command(*arguments)[0] == 0
    assert not progress.exists()


def test_files_of_the_users_own_are_never_taken_for_results(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    own = tmp_path / "samples.jsonl"
    own.write_text(manifest.read_text())
    code, _, stderr = lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--data", own, "--out", tmp_path, *QUICK
    )
    assert code == 2
    assert "holds samples.jsonl, which no probe wrote" in stderr
    assert own.read_text() == manifest.read_text()


def test_a_later_run_takes_away_the_folders_of_an_earlier_one(
    lsm_probe_command, tiny_lsm_folder, tiny_llm_folder, manifest, tmp_path
):
    out = tmp_path / "out"
    arguments = ("attention", "--data", manifest, "--out", out, *QUICK)
    assert lsm_probe_command(*arguments, "--ckpt", tiny_llm_folder, "--ckpt", tiny_lsm_folder)[0] == 0
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"llm", "lsm", "llm-at-length-of-lsm"}
    (out / "llm" / "notes.txt").write_text("mine")
    code, _, stderr = lsm_probe_command(*arguments, "--ckpt", tiny_lsm_folder)
    assert code == 0
    left = {path.name for path in out.glob("[!.]*")}
    pictures = {"eta.png", "eta.svg", "eta.csv", *HEADS}
    assert left == {"result.json", "arrays.npz", "samples.jsonl", "llm"} | pictures
    assert [path.name for path in (out / "llm").iterdir()] == ["notes.txt"]
    assert f"{out} held the results of an earlier run, which are in {out / '.previous'} now" in stderr
    kept = AttentionResult.load(out / ".previous" / "llm")
    assert kept.ids == AttentionResult.load(out).ids
    assert [result.name for result in lsm_probe.read_results([out]).attention] == ["lsm"]


def test_a_run_that_is_refused_leaves_no_folder(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    arguments = ("attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out", *QUICK)
    assert lsm_probe_command(*arguments, "--span", "nothing")[0] == 2
    assert not (tmp_path / "out").exists()


def test_limit_takes_the_first_samples(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "o", "--limit", 2, *QUICK
    )
    assert AttentionResult.load(tmp_path / "o").ids == ["s0", "s1"]


def test_a_killed_run_resumes_to_the_same_numbers(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path):
    """A process killed after its second batch, taken up again, equals one that was left alone."""
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


def test_an_interrupt_says_how_to_go_on(lsm_probe_command, tiny_llm_folder, manifest, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lsm_probe.runner.measurement_run.MeasurementRun.run", interrupt)
    code, _, stderr = lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out"
    )
    assert code == 130
    assert "--resume" in stderr


MISTAKES = {
    "missing manifest": (lambda m, out: ["--data", m.parent / "none.jsonl"], "none.jsonl"),
    "empty manifest": (lambda m, out: ["--data", write(m.parent / "empty.jsonl", [])], "empty.jsonl"),
    "line that is not JSON": (lambda m, out: ["--data", append(m, "{oops")], "line 5"),
    "missing key": (lambda m, out: ["--data", append(m, '{"id": "x", "text": "y"}')], "line 5"),
    "missing audio": (
        lambda m, out: ["--data", append(m, '{"id": "x", "instruction": "Do.", "audio": "no.wav"}')],
        "no.wav",
    ),
    "corrupt audio": (lambda m, out: ["--data", sound(m, b"RIFF no sound at all")], "broken.wav"),
    "empty audio": (lambda m, out: ["--data", sound(m, b"")], "broken.wav"),
    "unknown heads": (
        lambda m, out: ["--data", m, "--heads", "max"],
        "not one of 'sum_then_norm', 'mean_of_norms'",
    ),
    "unknown span": (lambda m, out: ["--data", m, "--span", "all"], "instruction+template"),
    "unknown template": (lambda m, out: ["--data", m, "--template", "alpaca"], "vicuna, vicuna_text, llama3, chat"),
    "unknown device": (lambda m, out: ["--data", m, "--device", "abacus"], "--device abacus"),
    "unknown dtype": (lambda m, out: ["--data", m, "--dtype", "int3"], "--dtype 'int3'"),
    "unknown on-error": (lambda m, out: ["--data", m, "--on-error", "hope"], "'hope' is not one of 'fail', 'skip'"),
    "bad batch size": (lambda m, out: ["--data", m, "--batch-size", "many"], "--batch-size 'many'"),
    "no reference": (lambda m, out: ["--data", m, "--response", "reference"], "`target`"),
    "over the context": (lambda m, out: ["--data", m, "--max-new-tokens", 1020], "exceed the context of 1024"),
    "no responses": (lambda m, out: ["--data", m, "--responses", m.parent], "holds no readable result"),
    "out is a file": (lambda m, out: ["--data", m, "--out", m], "is a file: name a folder"),
}


def append(manifest, line):
    manifest.write_text(manifest.read_text() + line + "\n")
    return manifest


def sound(manifest, content):
    (manifest.parent / "broken.wav").write_bytes(content)
    return append(manifest, '{"id": "broken", "instruction": "Do it.", "audio": "broken.wav"}')


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path, mistake):
    arguments, expected = MISTAKES[mistake]
    out = tmp_path / "out"
    code, stdout, stderr = lsm_probe_command(
        "attention", "--ckpt", tiny_lsm_folder, "--out", out, *arguments(manifest, out)
    )
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not (out / "result.json").exists()


@pytest.mark.parametrize("kind", ["no checkpoint", "not a folder", "unknown builtin", "twice"])
def test_a_wrong_checkpoint_is_one_line(lsm_probe_command, manifest, tiny_llm_folder, tmp_path, kind, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {
        "no checkpoint": [tmp_path],
        "not a folder": [tmp_path / "nowhere"],
        "unknown builtin": ["builtin:magic"],
        "twice": [tiny_llm_folder, tiny_llm_folder],
    }[kind]
    code, _, stderr = lsm_probe_command(
        "attention", *(part for name in names for part in ("--ckpt", name)), "--data", manifest, "--out", tmp_path / "o"
    )
    assert code == 2
    assert len([line for line in stderr.splitlines() if line.startswith("error: ")]) == 1
    assert str(names[0]) in stderr
    assert "Traceback" not in stderr


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("lsm_probe.models.loading._load_pretrained", lambda *_: pytest.fail("loaded"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("builtin:lm", "--ckpt builtin:lm is unknown; built-in checkpoints are: builtin:llm"),
        ("./lms", "./lms cannot be loaded: there is no folder lms in"),
        (".", "the folder has no config.json"),
    ],
)
@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_wrong_name_is_told_before_the_first_checkpoint_is_loaded(
    lsm_probe_command, manifest, tiny_llm_folder, tmp_path, name, said, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, stderr = lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--ckpt", name, "--data", manifest, "--out", "o"
    )
    assert code == 2
    assert said in stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_what_a_later_checkpoint_lacks_in_the_data_is_told_before_the_first_is_loaded(
    lsm_probe_command, tiny_llm_folder, tiny_lsm_folder, manifest, tmp_path
):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for first, second, key in ((tiny_llm_folder, tiny_lsm_folder, "audio"), (tiny_lsm_folder, tiny_llm_folder, "text")):
        lacking = write(tmp_path / "lacking.jsonl", [*rows[1:], {k: v for k, v in rows[0].items() if k != key}])
        code, _, stderr = lsm_probe_command(
            "attention", "--ckpt", first, "--ckpt", second, "--data", lacking, "--out", tmp_path / "o"
        )
        assert code == 2
        assert (
            f"1 of 4 samples have no `{key}`, which {second} needs here (first: s0): add it to the manifest" in stderr
        )
        assert not (tmp_path / "o").exists()


def test_an_instruction_without_tokens_is_refused(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    append(manifest, '{"id": "void", "instruction": "\u200b", "text": "green"}'.replace("\u200b", "\\u0020\\u00a0"))
    code, _, stderr = lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "o", *QUICK
    )
    assert code == 2
    assert "instruction" in stderr
    assert "line 5" in stderr or "void" in stderr


def test_a_second_process_in_the_same_folder_is_refused(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    import filelock

    out = tmp_path / "out"
    out.mkdir()
    with filelock.FileLock(out / ".lock"):
        code, _, stderr = lsm_probe_command(
            "attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", out, *QUICK
        )
    assert code == 2
    assert "another process is writing" in stderr


def test_stereo_at_44_khz_is_converted_and_silence_warns(lsm_probe_command, tiny_lsm_folder, tmp_path, waveform):
    stereo = np.stack([waveform(1.0), waveform(1.0, seed=1)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", np.repeat(stereo, 2, 0)[:44_100], 44_100)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    rows = [{"id": n, "instruction": "Translate it.", "audio": f"{n}.wav"} for n in ("stereo", "silent")]
    code, _, stderr = lsm_probe_command(
        "attention", "--ckpt", tiny_lsm_folder, "--data", write(tmp_path / "m.jsonl", rows), "--out", tmp_path / "o",
        *QUICK,
    )  # fmt: skip
    assert code == 0
    assert AttentionResult.load(tmp_path / "o").ids == ["stereo", "silent"]
    assert len([line for line in stderr.splitlines() if line.startswith("warning: ") and "silent" in line]) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["attention", "--help"], ["demo", "--help"], ["--version"]])
def test_help_and_version_wait_for_nothing_heavy(arguments):
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


def test_bad_lines_are_skipped_and_counted_if_asked(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    manifest.write_text(manifest.read_text() + "{not json\n")
    run = ("attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out", *QUICK)
    assert lsm_probe_command(*run)[0] == 2
    code, _, stderr = lsm_probe_command(*run, "--on-error", "skip")
    assert code == 0
    assert f"left out 1: {manifest}, line 5: is not JSON" in stderr
    assert len(AttentionResult.load(tmp_path / "out").samples) == 4
