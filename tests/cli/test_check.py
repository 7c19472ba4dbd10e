"""`lsm-probe check`: exit codes, one line, and only the result on stdout."""

import json
import shutil
import subprocess
import sys

import pytest

import lsm_probe

SAMPLES = 20


@pytest.fixture(scope="module")
def probed(tmp_path_factory, tiny_llm_folder):
    """A tiny model's result, as the probe writes it."""
    folder = tmp_path_factory.mktemp("probed")
    rows = [
        {"id": f"s{i}", "instruction": "Translate the speech.", "text": f"rain falls {i} times", "target": "so it does"}
        for i in range(SAMPLES)
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = lsm_probe.read_manifest(folder / "clips.jsonl")
    result = lsm_probe.attention(lsm_probe.load(tiny_llm_folder, device="cpu"), samples, response="reference")
    return result.save(folder / "result")


@pytest.fixture
def current(probed, tmp_path):
    """A copy of the result that a test may change."""
    return shutil.copytree(probed, tmp_path / "current")


@pytest.fixture
def check(lsm_probe_command, probed, current):
    """`check(*flags)` compares the copy with the result."""
    return lambda *flags: lsm_probe_command("check", "--baseline", probed, "--current", current, *flags)


def lower(folder, layer, by):
    content = json.loads((folder / "result.json").read_text())
    content["eta"]["mean"][layer] -= by
    (folder / "result.json").write_text(json.dumps(content))


@pytest.mark.parametrize("flags", [(), ("--paired",), ("--two-sided",), ("--paired", "--two-sided"), ("--json",)])
def test_an_unchanged_curve_passes(check, flags):
    code, stdout, stderr = check(*flags)
    assert code == 0
    assert stdout.startswith(("holds: ", "{"))
    assert not stderr


def test_a_fall_exits_with_1_and_names_the_layer(check, current):
    lower(current, 1, 0.05)
    code, stdout, stderr = check()
    assert code == 1
    assert stdout.startswith("regressed: eta fell by 0.050 in layer 1 ")
    assert stdout.splitlines()[2].split()[0] == "1"
    assert not stderr
    assert check("--tolerance", "0.06")[0] == 0


def test_with_json_stdout_has_the_result_only(check, current, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    lower(current, 2, 0.05)
    code, stdout, stderr = check("--json")
    assert code == 1
    assert json.loads(stdout)["regressed"] == [{"layer": 2, "change": -0.05}]
    assert stderr.startswith("::error file=")


@pytest.mark.parametrize("flags", [("--current", "nowhere"), ("--tolerance", "nan"), ("--baseline", "clips.jsonl")])
def test_unusable_files_give_one_line_and_exit_code_2(check, flags):
    code, stdout, stderr = check(*flags)
    assert code == 2
    assert not stdout
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1


def test_update_writes_a_baseline_that_passes(lsm_probe_command, current, tmp_path):
    held = ("check", "--baseline", tmp_path / "eta.json", "--current", current)
    missing = lsm_probe_command(*held)
    assert missing[0] == 2
    assert "--update" in missing[2]
    code, stdout, _ = lsm_probe_command(*held, "--update")
    assert code == 0
    assert stdout.startswith("accepted: ")
    assert lsm_probe_command(*held)[0] == 0
    lower(current, 0, 0.3)
    assert lsm_probe_command(*held)[0] == 1
    assert lsm_probe_command(*held, "--update")[0] == 0
    assert lsm_probe_command(*held)[0] == 0


def test_update_with_paired_also_copies_the_arrays(lsm_probe_command, current, tmp_path):
    held = ("check", "--baseline", tmp_path / "eta", "--current", current, "--paired")
    assert lsm_probe_command(*held, "--update")[0] == 0
    assert lsm_probe_command(*held)[0] == 0


def test_notes_go_to_stderr(check, current):
    content = json.loads((current / "result.json").read_text())
    content["checkpoint"]["dtype"] = "bfloat16"
    (current / "result.json").write_text(json.dumps(content))
    code, stdout, stderr = check()
    assert code == 0
    assert stdout.startswith("holds")
    assert stderr.startswith("warning: dtypes differ (baseline: float32, current result: bfloat16), ")
    assert stderr.endswith(
        "with --dtype float32, or compare the difference with the error that --verify-precision reports\n"
    )
    assert stderr.count("\n") == 1


def test_two_files_are_compared_without_torch_or_numpy(probed, current):
    code = (
        "import sys\nfrom lsm_probe.cli import main\n"
        f"sys.argv = ['lsm-probe', 'check', '--baseline', {str(probed)!r}, '--current', {str(current)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'numpy', 'pandas'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
