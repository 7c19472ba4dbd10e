"""`lsm-probe timeline`: its files, its table, and one line for every error."""

import json

import pytest
import soundfile

from lsm_probe.probes.timeline import measure as timeline_module
from lsm_probe.probes.timeline.words import Word

FILES = {"timeline.html", "timeline.png", "timeline.svg", "timeline.json"}


@pytest.fixture
def manifest(tmp_path, waveform, monkeypatch):
    """Two spoken samples; the word times are made without the real Whisper."""
    monkeypatch.setattr(timeline_module, "word_times", lambda wave, text: [Word(text.split()[0], 0.1, 0.4)])
    rows = []
    for i, text in enumerate(["the quick brown fox", "rain falls softly"]):
        soundfile.write(tmp_path / f"{i}.wav", waveform(1 + i, seed=i), 16_000)
        rows.append({"id": f"clip {i}", "instruction": "Write it down.", "audio": f"{i}.wav", "text": text})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("rendered")
def test_a_timeline_is_written_and_printed(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("timeline", "--ckpt", tiny_lsm_folder, "--data", manifest, "--max-new-tokens", 4)
    code, stdout, stderr = lsm_probe_command(*arguments, "--sample", "clip 1")
    assert code == 0, stderr
    out = tmp_path / "runs" / "timeline" / "lsm" / "clip-1"
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == FILES
    stored = json.loads((out / "timeline.json").read_text())
    assert stored["sample"]["id"] == "clip 1"
    assert stored["seconds"] == 2
    assert len(stored["eta"]) == 3
    assert "written to" in stdout
    assert "where the connector reads them" in stdout
    assert "Loading weights" not in stderr


def test_printed_json_equals_the_file(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path):
    code, stdout, _ = lsm_probe_command(
        "timeline", "--ckpt", tiny_lsm_folder, "--data", manifest, "--out", tmp_path / "o", "--max-new-tokens", 4,
        "--layer", 2, "--json",
    )  # fmt: skip
    assert code == 0
    printed = json.loads(stdout)
    assert printed["sample"]["id"] == "clip 0"
    assert printed == json.loads((tmp_path / "o" / "timeline.json").read_text())
    assert 'layer <tspan id="named">2' in (tmp_path / "o" / "timeline.html").read_text()


def test_samples_have_separate_folders_for_ids_in_any_script(
    lsm_probe_command, tiny_lsm_folder, manifest, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    manifest.write_text(manifest.read_text().replace("clip 0", "a/音").replace("clip 1", "b/音"))
    for name in ("a/音", "b/音"):
        arguments = ("timeline", "--ckpt", tiny_lsm_folder, "--data", manifest, "--max-new-tokens", 2)
        assert lsm_probe_command(*arguments, "--sample", name)[0] == 0
    folders = {path.name for path in (tmp_path / "runs" / "timeline" / "lsm").iterdir()}
    assert folders == {"a-音", "b-音"}


def test_a_missing_layer_is_refused_before_the_model_runs(refusal, tiny_lsm_folder, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(timeline_module, "timeline", None)
    arguments = ("--ckpt", tiny_lsm_folder, "--data", manifest, "--out", tmp_path / "out", "--layer", 3)
    assert "layer 3 is not one of 3" in refusal("timeline", *arguments)
