"""`lsm-probe alignment` through its own door: files, tables, exit codes and one line for every mistake."""

import json

import pytest
import soundfile

from lsm_probe.probes.alignment import PROBE
from lsm_probe.probes.alignment.result import AlignmentResult
from lsm_probe.runner.comparison import SCHEMA

PICTURES = PROBE.pictures

WORDS = [
    "the quick brown fox",
    "rain falls softly",
    "the old town sells sea shells",
    "green",
    "nobody knows",
    "lazy dog",
]
QUICK = ("--perplexity", 4)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, waveform):
    """Six spoken samples; do not write to it."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i, text in enumerate(WORDS):
        soundfile.write(folder / f"{i}.wav", waveform(0.5 + i / 2, seed=i), 16_000)
        instruction = "Translate the speech." if i % 2 else "Repeat it."
        rows.append({"id": f"s{i}", "instruction": instruction, "audio": f"{i}.wav", "text": text, "target": text})
    return write(folder / "clips.jsonl", rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without(key, manifest):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    del rows[1][key]
    return write(manifest.with_name(f"no-{key}.jsonl"), rows)


def strict(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_one_checkpoint_writes_everything_into_the_folder(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = lsm_probe_command(
        "alignment", "--ckpt", tiny_lsm_folder, "--data", manifest, "--out", out, *QUICK
    )
    assert code == 0, stderr
    files = {"result.json", "arrays.npz", "samples.jsonl", *PICTURES}
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == files
    result = AlignmentResult.load(out)
    assert len(result.samples) == 6
    assert result.perplexity == 4
    assert strict((out / "result.json").read_text())["states"] == [0, 1, 2, 3]
    assert f"{result.curves()['cka'].mean[2]:.3f}" in stdout
    assert "6 samples, 0 left out; segment source" in stdout
    assert "2 instructions, which make samples differ too" in stdout


def test_checkpoints_are_compared(lsm_probe_command, tiny_lsm, tiny_lsm_folder, manifest, tmp_path):
    tiny_lsm.model.draw_connector(1)
    tiny_lsm.save(tmp_path / "other")
    out = tmp_path / "out"
    code, stdout, stderr = lsm_probe_command(
        "alignment", "--ckpt", tiny_lsm_folder, "--ckpt", tmp_path / "other", "--data", manifest, "--out", out,
        "--segment", "response", "--response", "reference", "--layer", 2, "--instruction", "Repeat it.", *QUICK,
    )  # fmt: skip
    assert code == 0, stderr
    comparison = strict((out / "comparison.json").read_text())
    assert comparison["schema"] == SCHEMA
    assert comparison["conventions"] == {"segment": "response", "response": "reference"}
    (pair,) = comparison["pairs"]
    assert pair["warning"] is None
    assert len(pair["cka_difference"]["mean"]) == 4
    assert pair["paired_cosine_difference"]["mean"][0] == 0  # the embeddings of one response
    assert {"lsm", "other", *PICTURES} <= {path.name for path in out.iterdir()}
    assert "instructions, which make" not in stdout
    assert AlignmentResult.load(out / "other").data.instruction == "Repeat it."
    assert {line.split(",")[3] for line in (out / "alignment_points.csv").read_text().splitlines()[1:]} == {"2"}


def test_json_goes_to_stdout_and_nothing_else_does(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path):
    code, stdout, _ = lsm_probe_command(
        "alignment", "--ckpt", tiny_lsm_folder, "--data", manifest, "--out", tmp_path / "out", "--json", *QUICK
    )
    assert code == 0
    assert strict(stdout)["results"][0] == json.loads((tmp_path / "out" / "result.json").read_text())


MISTAKES = {
    "unknown segment": (lambda m: ["--segment", "system"], "'system' is not one of 'source', 'prompt', 'response'"),
    "unknown response": (
        lambda m: ["--segment", "response", "--response", "mine"],
        "'mine' is not one of 'generated', 'reference'",
    ),
    "unknown layer": (lambda m: ["--layer", 4], "has no state 4: choose from 0"),
    "layer below the last": (lambda m: ["--layer", -2], "has no state -2: choose from 0"),
    "perplexity": (lambda m: ["--perplexity", 12], "perplexity 12 needs more than 6 samples"),
    "too few": (lambda m: ["--limit", 4], "at least 5 utterances of different words, got 4"),
    "blank instruction": (lambda m: ["--instruction", " "], "is empty or blank"),
    "no text": (lambda m: ["--data", without("text", m)], "1 of 6 samples have no `text`"),
    "no audio": (lambda m: ["--data", without("audio", m)], "1 of 6 samples have no `audio`"),
    "no target": (
        lambda m: ["--data", without("target", m), "--segment", "response", "--response", "reference"],
        "1 of 6 samples have no `target`",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(lsm_probe_command, tiny_lsm_folder, manifest, tmp_path, mistake):
    arguments, expected = MISTAKES[mistake]
    out = tmp_path / "out"
    code, stdout, stderr = lsm_probe_command(
        "alignment", "--ckpt", tiny_lsm_folder, "--data", manifest, "--out", out, *QUICK, *arguments(manifest)
    )
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not (out / "result.json").exists()


def test_a_text_llm_is_refused(lsm_probe_command, tiny_llm_folder, manifest, tmp_path):
    code, _, stderr = lsm_probe_command(
        "alignment", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out", *QUICK
    )
    assert code == 2
    assert "is a text LLM" in stderr
    assert "Traceback" not in stderr
