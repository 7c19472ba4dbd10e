"""Output: paths that cannot be written, streams that cannot encode, and figures that cannot be drawn."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lsm_probe.assets.cache import cache_root
from lsm_probe.errors import InputError

ODD = "[b]η_$x$ :smile: 模型"
RUNS = {
    "attention": ("attention", "--ckpt", "absent", "--data", "absent.jsonl", "--out"),
    "sensitivity": ("sensitivity", "--ckpt", "absent", "--data", "absent.jsonl", "--out"),
    "alignment": ("alignment", "--ckpt", "absent", "--data", "absent.jsonl", "--out"),
    "knockout": ("knockout", "--ckpt", "absent", "--data", "absent.jsonl", "--out"),
    "importance": ("importance", "--ckpt", "absent", "--data", "absent.jsonl", "--out"),
    "scratch": ("importance", "--ckpt", "absent", "--data", "absent.jsonl", "--scratch"),
    "timeline": ("timeline", "--ckpt", "absent", "--data", "absent.jsonl", "--out"),
    "evaluate": ("evaluate", "--ckpt", "absent", "--task", "absent.yaml", "--out"),
    "score": ("score", "absent", "--out"),
    "text-ability": ("text-ability", "--ckpt", "absent", "--data", "absent.jsonl", "--out"),
    "augment": ("augment", "--data", "absent.jsonl", "--llm", "absent", "--out"),
    "train": ("train", "mini/vanilla_asr", "--out"),
    "demo": ("demo", "--out"),
    "figure": ("figure", "figure3", "absent", "--out"),
    "speak": ("data", "speak", "absent.txt", "--out"),
    "commands": ("data", "commands", "--out"),
    "corpus": ("data", "librispeech", "--root", "absent", "--out"),
}
FILES = {
    "report": ("report", "absent", "--out"),
    "rates": ("importance", "--ckpt", "absent", "--data", "absent.jsonl", "--write-lr-schedule"),
    "update": ("check", "--current", "absent", "--update", "--baseline"),
}


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"id": "a", "instruction": "Repeat.", "text": "the quick brown fox"}\n')
    return path


@pytest.fixture
def odd_name(tiny_llm_folder, tmp_path):
    """A checkpoint whose name is difficult for markup, formulas, fonts and encodings."""
    shutil.copytree(tiny_llm_folder, tmp_path / ODD)
    return tmp_path / ODD


@pytest.mark.parametrize("place", ["file/x", "x" * 256, "new/" + "x" * 256 + "/y", "/proc/x", "/dev/null"])
@pytest.mark.parametrize("command", [*RUNS, *FILES])
def test_a_path_that_cannot_be_written_is_refused_before_the_run(
    command, place, lsm_probe_command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    arguments = (RUNS | FILES)[command]
    code, stdout, stderr = lsm_probe_command(*arguments, place)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {arguments[-1]} {place}")
    assert stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", RUNS)
def test_a_file_is_refused_as_output_folder(command, lsm_probe_command, tmp_path):
    (tmp_path / "file").touch()
    code, _, stderr = lsm_probe_command(*RUNS[command], tmp_path / "file")
    assert (code, stderr) == (2, f"error: {RUNS[command][-1]} {tmp_path / 'file'} is a file: name a folder\n")


@pytest.mark.parametrize("command", ["report", "rates"])
def test_a_folder_is_refused_as_output_file(command, lsm_probe_command, tmp_path):
    code, _, stderr = lsm_probe_command(*FILES[command], tmp_path)
    assert (code, stderr) == (2, f"error: {FILES[command][-1]} {tmp_path} is a folder: name a file\n")


def test_a_page_with_the_path_of_its_notebook_is_refused(lsm_probe_command, tmp_path):
    code, _, stderr = lsm_probe_command("report", tmp_path, "--out", "page.ipynb")
    assert code == 2
    assert "page.ipynb would overwrite the page with its notebook" in stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_tables_and_json_are_printed_in_any_encoding(
    encoding, odd_name, lsm_probe_command, manifest, tmp_path, monkeypatch
):
    def printed(*more):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, write_through=True))
        arguments = ("--ckpt", odd_name, "--data", manifest, "--max-new-tokens", 2, "--out", tmp_path / "out", *more)
        code, _, stderr = lsm_probe_command("attention", *arguments)
        assert code == 0, stderr
        return raw.getvalue().decode(encoding)

    table = printed()
    assert ("η" if encoding == "utf-8" else r"\u03b7") in table
    shown = ODD if encoding == "utf-8" else ODD.replace("η", r"\u03b7").replace("模型", r"\u6a21\u578b")
    assert f"{shown}: 1 samples" in table
    assert "\\[b]" not in table
    (stored,) = json.loads(printed("--json"))["results"]
    assert stored["checkpoint"]["name"] == str(odd_name)


def test_matplotlib_settings_and_stream_encodings_of_the_user_do_not_matter(odd_name, manifest, tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    settings = {"MPLBACKEND": "no such backend", "MATPLOTLIBRC": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    out = tmp_path / "out"
    command = ["attention", "--ckpt", odd_name, "--data", manifest, "--max-new-tokens", "2", "--out", out]
    run = subprocess.run(
        [sys.executable, "-m", "lsm_probe", *command], env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert {"result.json", "eta.png", "eta.svg", "eta_heads.png"} <= {path.name for path in out.iterdir()}
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("command", "drawing", "kept", "printed", "picture"),
    [
        ("attention", "attention.plot.eta_figure", "result.json", "instruction proportion", "eta.png"),
        ("timeline", "timeline.plot.save_timeline", "timeline.json", "words : silence", "timeline.png"),
    ],
)
def test_results_are_kept_and_printed_if_plotting_fails(
    command, drawing, kept, printed, picture, lsm_probe_command, tiny_lsm_folder, clip, write, tmp_path, monkeypatch
):
    clip(tmp_path / "a.wav", 1.0)
    row = '{"id": "a", "instruction": "Repeat.", "audio": "a.wav", "text": "the quick brown fox"}'
    data = write(tmp_path / "manifest.jsonl", row)

    def fail(*_):
        raise RuntimeError("latex was not found\n")

    monkeypatch.setattr(f"lsm_probe.probes.{drawing}", fail)
    out = tmp_path / "out"
    arguments = ("--ckpt", tiny_lsm_folder, "--data", data, "--max-new-tokens", 2, "--out", out)
    code, stdout, stderr = lsm_probe_command(command, *arguments)
    assert code == 1
    line = f"error: the numbers are in {out}, but drawing them failed (RuntimeError: latex was not found)\n"
    assert stderr.endswith(line)
    assert (out / kept).exists()
    assert printed in stdout
    assert picture not in stdout


def test_without_a_home_folder_the_cache_option_is_required(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    for name in ("LSM_PROBE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="no home folder: set LSM_PROBE_CACHE to an absolute path"):
        cache_root()
    monkeypatch.setenv("LSM_PROBE_CACHE", "/somewhere")
    assert cache_root() == Path("/somewhere")


def test_a_name_that_is_not_utf8_is_refused(lsm_probe_command, manifest, tmp_path):
    name = str(tmp_path / "half\udcff")
    code, _, stderr = lsm_probe_command("attention", "--ckpt", name, "--data", manifest, "--out", tmp_path / "out")
    assert code == 2
    assert r"half\udcff' is not a name in UTF-8: rename the folder" in stderr
