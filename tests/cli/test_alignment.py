"""`lsm-probe alignment`: files, tables, exit codes, and one line for every error."""

import json

import pytest
import soundfile

from lsm_probe.probes.alignment import PROBE
from lsm_probe.probes.alignment.result import AlignmentResult
from lsm_probe.runner.comparison import SCHEMA

PICTURES = PROBE.pictures

WORDS = ["the quick brown fox", "rain falls softly", "the old town sells sea shells", "green", "nobody knows", "dog"]


COMMAND = ("alignment", "--perplexity", 4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, waveform, write):
    """Six spoken samples; do not write to it."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i, text in enumerate(WORDS):
        soundfile.write(folder / f"{i}.wav", waveform(0.5 + i / 2, seed=i), 16_000)
        instruction = "Translate the speech." if i % 2 else "Repeat it."
        rows.append({"id": f"s{i}", "instruction": instruction, "audio": f"{i}.wav", "text": text, "target": text})
    return write(folder / "clips.jsonl", *map(json.dumps, rows))


@pytest.fixture
def manifest(clips):
    return clips


def test_one_checkpoint_writes_all_files_into_the_folder(run, files, strict, tiny_lsm_folder, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = run(tiny_lsm_folder)
    assert code == 0, stderr
    assert files(out) == {"result.json", "arrays.npz", "samples.jsonl", *PICTURES}
    result = AlignmentResult.load(out)
    assert len(result.samples) == 6
    assert result.perplexity == 4
    assert strict((out / "result.json").read_text())["states"] == [0, 1, 2, 3]
    assert f"{result.curves()['cka'].mean[2]:.3f}" in stdout
    assert "6 samples, 0 left out; segment source" in stdout
    assert "2 instructions, which also make samples differ" in stdout


def test_checkpoints_are_compared(run, files, strict, tiny_lsm, tiny_lsm_folder, tmp_path):
    tiny_lsm.model.draw_connector(1)
    tiny_lsm.save(tmp_path / "other")
    out = tmp_path / "out"
    options = ("--segment", "response", "--response", "reference", "--layer", 2, "--instruction", "Repeat it.")
    code, stdout, stderr = run(tiny_lsm_folder, tmp_path / "other", options=options)
    assert code == 0, stderr
    comparison = strict((out / "comparison.json").read_text())
    assert comparison["schema"] == SCHEMA
    assert comparison["conventions"] == {"segment": "response", "response": "reference"}
    (pair,) = comparison["pairs"]
    assert pair["warning"] is None
    assert len(pair["cka_difference"]["mean"]) == 4
    assert pair["paired_cosine_difference"]["mean"][0] == 0  # the embeddings of one response
    assert {"lsm", "other", *PICTURES} <= files(out)
    assert "instructions, which also make" not in stdout
    assert AlignmentResult.load(out / "other").data.instruction == "Repeat it."
    assert {line.split(",")[3] for line in (out / "alignment_points.csv").read_text().splitlines()[1:]} == {"2"}
