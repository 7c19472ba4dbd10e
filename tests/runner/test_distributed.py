"""Two processes give the result of one, resume its run, and fail together."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lsm_probe import cli, distributed
from lsm_probe.errors import InputError

SCRIPT = Path(__file__).with_name("all_probes.py")
PROBES = ("attention", "sensitivity", "knockout", "alignment", "importance", "signed", "evaluation", "half")
WORLD = 2
TIMEOUT = 200
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={WORLD}", "--standalone")


@pytest.fixture(scope="module")
def all_probes():
    spec = importlib.util.spec_from_file_location("all_probes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def manifest(samples, tmp_path_factory):
    """The eight spoken samples of the other tests: four batches of two. Each instruction is a separate task."""
    path = tmp_path_factory.mktemp("manifest") / "clips.jsonl"
    lines = [sample.model_dump_json(exclude_none=True, exclude={"task"}) for sample in samples]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def alone(all_probes, tiny_lsm_folder, manifest, tmp_path_factory):
    """The output of a single process, with `begun` (progress of the first and the last batch)."""
    out = tmp_path_factory.mktemp("alone")
    report = {}
    all_probes.run(tiny_lsm_folder, manifest, out, report)
    (out / "report.json").write_text(json.dumps(report))
    result, _ = all_probes.resume(tiny_lsm_folder, manifest, out / "begun")
    result.save(out / "resumed")
    for batch in ("batch-000002.npz", "batch-000004.npz"):
        (out / "begun" / batch).unlink()
    return out


@pytest.fixture(scope="module")
def shared(alone, tiny_lsm_folder, manifest, tmp_path_factory):
    """The output of two processes: a folder each, and `begun`, from which they resumed."""
    out = tmp_path_factory.mktemp("shared")
    shutil.copytree(alone / "begun", out / "begun")
    shutil.copytree(alone / "knockout", out / "taken")
    damage(manifest, out / "damaged.wav")
    arguments = map(str, [SCRIPT, tiny_lsm_folder, manifest, out])
    ended = subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    assert not ended.returncode, ended.stderr
    return out


def damage(manifest, path):
    """Writes a valid beginning of an audio file, but damages the samples."""
    whole = Path(json.loads(manifest.read_text().splitlines()[3])["audio"])
    path.write_bytes(whole.read_bytes()[:100])


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def assert_same(folder, expected):
    """Check that results are equal: samples and words exactly, numbers up to rounding, masks bit for bit."""
    assert (folder / "samples.jsonl").read_bytes() == (expected / "samples.jsonl").read_bytes()
    for name in [path.name for path in expected.glob("*.npz")]:
        with np.load(folder / name) as mine, np.load(expected / name) as theirs:
            assert sorted(mine.files) == sorted(theirs.files)
            for key in theirs.files:
                if theirs[key].dtype.kind == "f":
                    np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-6, atol=1e-6, err_msg=key)
                else:
                    np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)
    mine, theirs = (json.loads((f / "result.json").read_text()) for f in (folder, expected))
    assert mine.keys() == theirs.keys()
    assert {key: mine[key] for key in ("checkpoint", "data", "conventions", "excluded", "n_samples")} == {
        key: theirs[key] for key in ("checkpoint", "data", "conventions", "excluded", "n_samples")
    }


@pytest.mark.parametrize("rank", range(WORLD))
@pytest.mark.parametrize("probe", PROBES)
def test_every_process_has_the_result_of_a_single_process_run(alone, shared, probe, rank):
    assert_same(shared / str(rank) / probe, alone / probe)


@pytest.mark.parametrize("probe", PROBES)
def test_processes_write_identical_files(shared, probe):
    for path in (shared / "0" / probe).iterdir():
        assert path.read_bytes() == (shared / "1" / probe / path.name).read_bytes(), path.name


def test_ablation_gives_the_same_result_and_restores_the_weights(alone, shared):
    expected = json.loads((alone / "importance" / "result.json").read_text())["ablation"]
    assert expected["perplexity"]["top"] != expected["perplexity"]["none"]
    for rank in range(WORLD):
        found = json.loads((shared / str(rank) / "importance" / "result.json").read_text())["ablation"]
        assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)
        assert report_of(shared / str(rank))["changed"] == []


@pytest.mark.parametrize("probe", PROBES)
def test_progress_counts_the_samples_of_all_processes(alone, shared, probe):
    total = report_of(alone)["done"][probe][-1]
    for rank in range(WORLD):
        done = report_of(shared / str(rank))["done"][probe]
        assert done == sorted(done)
        assert done[-1] == total == (12 if probe == "half" else 8)  # four samples again in float32
        assert len(done) < total  # its own batches, and the end


def test_two_processes_resume_a_run_of_one(alone, shared):
    """Batches 0 and 3 exist; 1 belongs to the second process, 2 to the first."""
    assert [report_of(shared / str(rank))["measured"] for rank in range(WORLD)] == [["s4", "s5"], ["s2", "s3"]]
    for rank in range(WORLD):
        assert_same(shared / str(rank) / "resumed", alone / "resumed")


def test_one_process_resumes_a_run_of_two(all_probes, alone, shared, tiny_lsm_folder, manifest, tmp_path):
    shutil.copytree(shared / "begun", tmp_path / "begun")
    (tmp_path / "begun" / "batch-000006.npz").unlink()
    result, measured = all_probes.resume(tiny_lsm_folder, manifest, tmp_path / "begun")
    assert measured == ["s6", "s7"]
    assert_same(result.save(tmp_path / "resumed"), alone / "resumed")


def test_a_failure_of_one_process_is_raised_in_all_and_the_run_can_be_resumed(shared):
    """The sample belongs to the second process."""
    reports = [report_of(shared / str(rank)) for rank in range(WORLD)]
    assert reports[0]["refused"] == reports[1]["refused"]
    assert reports[0]["refused"].startswith("sample s3: ")
    assert [report["after"] for report in reports] == [[0, 1], [0, 1]]


def test_other_processes_stop_when_one_fails(shared):
    """The first process has two batches, the second fails in its first; on a busy machine this may happen before the
    first process begins."""
    assert report_of(shared / "1")["begun"] == ["s2", "s3"]
    assert report_of(shared / "0")["begun"] in (["s0", "s1"], [])


def test_only_rank_0_writes_results(shared):
    assert (shared / "0" / "folder" / "result.json").exists()
    assert not list((shared / "1" / "folder").glob("*.json*"))


def test_all_processes_fail_if_rank_0_cannot_write_to_the_folder(shared):
    for rank in range(WORLD):
        assert "result of `lsm-probe knockout`" in report_of(shared / str(rank))["taken"]


# The command line


def start(*arguments, cwd=None):
    """Each process of `lsm-probe`, started by hand: torchrun would hide their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "lsm_probe", *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            env=os.environ | {k: str(v) for k, v in (group | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        for rank in range(WORLD)
    ]


def wait(started):
    """Exit code, stdout and stderr of each process."""
    try:
        said = [process.communicate(timeout=TIMEOUT) for process in started]
        return [(process.returncode, *both) for process, both in zip(started, said, strict=True)]
    finally:
        for process in started:
            process.kill()


def test_under_torchrun_only_rank_0_writes_and_prints(
    tiny_lsm_folder, tiny_llm_folder, manifest, tmp_path, monkeypatch, capsys
):
    options = ["attention", "--ckpt", tiny_llm_folder, "--ckpt", tiny_lsm_folder, "--data", manifest]
    options += ["--device", "cpu", "--max-new-tokens", 4, "--batch-size", 2, "--out"]
    monkeypatch.setattr(sys, "argv", ["lsm-probe", *map(str, options), str(tmp_path / "one")])
    with pytest.raises(SystemExit):
        cli.main()
    ended = subprocess.run(
        [*TORCHRUN, "-m", "lsm_probe", *map(str, options), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert not ended.returncode, ended.stderr
    assert ended.stdout.replace("two", "one") == capsys.readouterr().out
    one, two = ({p.relative_to(out) for p in out.rglob("*")} for out in (tmp_path / "one", tmp_path / "two"))
    assert one == two
    for path in sorted(one):
        if path.suffix in (".json", ".jsonl", ".npz", ".csv"):
            assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_an_unusable_sample_in_one_process_ends_both_with_one_line(tiny_lsm_folder, manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[3]["audio"] = str(tmp_path / "damaged.wav")
    damage(manifest, tmp_path / "damaged.wav")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", broken, "--out", tmp_path / "out", "--max-new-tokens", 4, "--batch-size", 2]
    ended = wait(start("attention", "--ckpt", tiny_lsm_folder, *options, "--device", "cpu"))
    assert [code for code, _, _ in ended] == [2, 2]
    lines = [line for _, _, said in ended for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "sample s3" in lines[0]
    assert not any("Traceback" in said for _, _, said in ended)
    assert not (tmp_path / "out" / "result.json").exists()


def test_ctrl_c_in_one_process_ends_both_and_the_run_can_be_resumed(tiny_lsm_folder, manifest, tmp_path):
    out = tmp_path / "out"
    options = ["--data", manifest, "--out", out, "--batch-size", 1, "--max-new-tokens", 512]
    command = ["attention", "--ckpt", tiny_lsm_folder, *options, "--device", "cpu"]
    started = start(*command)
    deadline = time.monotonic() + TIMEOUT
    while not list(out.glob("progress/*/batch-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    started[1].send_signal(signal.SIGINT)
    ended = wait(started)
    assert [code for code, _, _ in ended] == [130, 130], ended
    assert sum(said.count("with --resume to continue") for _, _, said in ended) == 1
    assert list(out.glob("progress/*/batch-*.npz"))


# One process


def test_a_single_process_gets_all_the_work():
    share = distributed.RankShare([1, 2, 3])
    assert list(share) == [1, 2, 3]
    assert [share.done(2), share.done(1)] == [2, 3]
    assert distributed.all_gather_or_raise("found") == ["found"]
    assert distributed.is_main_rank()
    with pytest.raises(InputError, match="mine"), distributed.on_all_ranks():
        raise InputError("mine")


def test_more_processes_than_gpus_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert str(distributed.local_device()) == "cuda"
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="--nproc-per-node 1"):
        distributed.local_device()


def test_the_process_group_leaves_no_threads(tmp_path):
    """A thread that releases a tensor while the interpreter exits sometimes aborts the process (SIGABRT)."""
    pytest.importorskip("torch")
    script = tmp_path / "ends.py"
    script.write_text(
        "import atexit, pathlib, sys\n"
        "def threads():\n"
        "    return [(task / 'comm').read_text().strip() for task in pathlib.Path('/proc/self/task').iterdir()]\n"
        "atexit.register(lambda: sys.stdout.write(' '.join(['left with', *threads()]) + '\\n'))\n"
        "from lsm_probe.distributed import all_gather_or_raise, init_distributed, on_all_ranks\n"
        "init_distributed(cpu=True)\n"
        "with on_all_ranks():\n"
        "    assert all_gather_or_raise('found') == ['found', 'found']\n"
        "assert any('gloo' in name for name in threads())\n"
    )
    ended = subprocess.run([*TORCHRUN, str(script)], capture_output=True, text=True, timeout=TIMEOUT)
    assert not ended.returncode, ended.stderr
    left = [line for line in ended.stdout.splitlines() if line.startswith("left with")]
    assert len(left) == WORLD
    assert not any("gloo" in line for line in ended.stdout.splitlines())
