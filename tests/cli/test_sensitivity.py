"""`lsm-probe sensitivity`: files, table, warnings, and one line for every error."""

import json

import numpy as np
import pytest

from lsm_probe.probes.sensitivity import PROBE
from lsm_probe.probes.sensitivity.result import SensitivityResult

PICTURES = PROBE.pictures

COMMAND = ("sensitivity", "--max-new-tokens", 4)
FILES = {"result.json", "arrays.npz", "samples.jsonl", *PICTURES}


@pytest.fixture
def pool(tmp_path):
    """An instruction file of four tasks; two have several wordings."""
    path = tmp_path / "pool.yaml"
    path.write_text(
        "tasks:\n"
        "  - task: translation\n    instructions: [Translate the speech into German., Say it in German.]\n"
        "  - task: repetition\n    instructions: ['Repeat it.', 'Say that again.', 'Say it twice.']\n"
        "  - task: answer\n    instructions: [Answer in one word., Answer shortly.]\n"
        "  - task: summary\n    instructions: [Sum it up.]\n"
    )
    return path


def sizes(log_probs):
    return np.isfinite(log_probs[:, :, 0]).sum(1).tolist()


@pytest.mark.usefixtures("rendered")
def test_one_checkpoint_writes_all_files_into_the_folder(run, files, tiny_lsm_folder, tmp_path):
    code, stdout, stderr = run(tiny_lsm_folder)
    out = tmp_path / "out"
    assert code == 0, stderr
    assert files(out) == FILES
    result = SensitivityResult.load(out)
    assert result.ids == ["s0", "s1", "s2", "s3"]
    assert sizes(result.instruction_log_probs) == sizes(result.source_log_probs) == [3] * 4
    for per in ("token", "response"):
        read = result.with_conventions(per=per)
        for curve in (read.instruction(), read.source()):
            assert f"{curve.mean:.3f} [{curve.ci_low:.3f}, {curve.ci_high:.3f}]" in stdout
    assert f"{tiny_lsm_folder}: 4 samples, 0 left out; pools of" in stdout
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "sensitivity.csv").read_text().splitlines()) == 1 + 4
    assert len((out / "sensitivity_tokens.csv").read_text().splitlines()) == 1 + result.instruction_log_probs.shape[2]


def test_convention_options_are_stored_in_the_result(run, tiny_llm_folder, rows, pool, tmp_path):
    options = ("--per", "response", "--pool", "paraphrases", "--response", "reference", "--instructions", pool)
    code, stdout, stderr = run(tiny_llm_folder, options=(*options, "--sources", 2, "--seed", 3))
    assert code == 0, stderr
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    flags = {"per": "response", "pool": "paraphrases", "response": "reference"}
    assert flags.items() <= stored["conventions"].items()
    assert stored["unit"] == "nats per response"
    assert stored["seed"] == 3
    result = SensitivityResult.load(tmp_path / "out")
    assert [sample["response"] for sample in result.samples] == [row["target"] for row in rows]
    # The wordings of each sample's task in the file, and its own where it is another.
    assert sizes(result.instruction_log_probs) == [2, 4, 3, 2]
    assert sizes(result.source_log_probs) == [2] * 4
    assert "responses: the reference" in stdout


def test_an_instruction_file_is_used(run, tiny_llm_folder, pool, tmp_path):
    assert run(tiny_llm_folder, out=tmp_path / "own")[0] == 0
    again = ("--responses", tmp_path / "own")
    assert run(tiny_llm_folder, out=tmp_path / "file", options=(*again, "--instructions", pool))[0] == 0
    joined = ("--instructions", pool, "--instructions", "probing")
    assert run(tiny_llm_folder, out=tmp_path / "joined", options=(*again, *joined))[0] == 0
    own, file, both = (SensitivityResult.load(tmp_path / name) for name in ("own", "file", "joined"))
    assert sizes(own.instruction_log_probs) == [3] * 4
    assert sizes(file.instruction_log_probs) == [4] * 4
    # `probing` adds three tasks: its `translation` and `summary` are already in the file.
    assert sizes(both.instruction_log_probs) == [7] * 4
    assert json.loads((tmp_path / "file" / "result.json").read_text())["instruction"]["ceiling"] == pytest.approx(
        np.log(4), abs=1e-6
    )
    np.testing.assert_allclose(file.instruction_log_probs[:, 0], own.instruction_log_probs[:, 0], rtol=1e-4, atol=1e-4)


def test_two_checkpoints_are_compared_with_a_warning(run, files, tiny_llm_folder, save_llm, tmp_path):
    second = save_llm(tmp_path / "second", seed=1)
    code, stdout, stderr = run(tiny_llm_folder, second)
    out = tmp_path / "out"
    assert code == 0, stderr
    assert files(out) == {"comparison.json", *PICTURES, tiny_llm_folder.name, "second"}
    assert files(out / "second") == FILES - set(PICTURES)
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["probe"] == "sensitivity"
    (pair,) = comparison["pairs"]
    results = [SensitivityResult.load(out / name) for name in (tiny_llm_folder.name, "second")]
    for label in ("instruction", "source"):
        means = [getattr(result, label)().mean for result in results]
        assert pair[f"{label}_difference"]["mean"] == pytest.approx(means[1] - means[0], abs=1e-6)
    assert not pair["same_responses"]
    warnings = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [f"warning: {pair['warning']}"]
    assert "are measured on different responses" in warnings[0]
    assert "are measured on different responses" not in stdout


def test_a_warning_that_holds_for_every_pair_is_printed_once(run, tiny_llm_folder, save_llm, tmp_path):
    others = [save_llm(tmp_path / name, seed=seed) for seed, name in enumerate(("second", "third"), start=1)]
    code, _, stderr = run(tiny_llm_folder, *others)
    assert code == 0, stderr
    (warning,) = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert f"{tiny_llm_folder.name} and {others[0]}" in warning
    assert "the same of 2 more pairs" in warning


def test_reference_responses_need_no_warning(run, tiny_llm_folder, save_llm, tmp_path):
    second = save_llm(tmp_path / "second", seed=1)
    code, _, stderr = run(tiny_llm_folder, second, options=("--response", "reference"))
    assert code == 0
    assert "warning:" not in stderr
    (pair,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"]
    assert pair["same_responses"]


def test_text_and_speech_are_compared_on_given_responses(run, tiny_llm_folder, tiny_lsm_folder, tmp_path):
    assert run(tiny_llm_folder, out=tmp_path / "first")[0] == 0
    code, stdout, stderr = run(tiny_llm_folder, tiny_lsm_folder, options=("--responses", tmp_path / "first"))
    assert code == 0
    assert "responses: given" in stdout
    assert "warning:" not in stderr
    speech = SensitivityResult.load(tmp_path / "out" / tiny_lsm_folder.name)
    assert speech.responses() == SensitivityResult.load(tmp_path / "first").responses()


def test_the_folder_of_another_probe_is_refused_and_not_changed(
    run, lsm_probe_command, tiny_llm_folder, manifest, tmp_path
):
    out = tmp_path / "out"
    arguments = ("--ckpt", tiny_llm_folder, "--data", manifest, "--out", out, "--max-new-tokens", 4)
    assert lsm_probe_command("attention", *arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, stderr = run(tiny_llm_folder)
    assert code == 2
    assert "error: " in stderr
    assert "holds a result of `lsm-probe attention`: give another folder with --out" in stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
