"""`lsm-probe sensitivity` through its own door: files, table, warnings, and one line for every mistake."""

import json

import numpy as np
import pytest
import soundfile

from lsm_probe.probes.sensitivity import PROBE
from lsm_probe.probes.sensitivity.result import SensitivityResult

PICTURES = PROBE.pictures

TEXTS = ["the quick brown fox", "rain falls softly", "the old town sells sea shells", "green"]
ASKED = [
    ("translation", "Translate the speech into German."),
    ("repetition", "Write down what the speaker says, and repeat it twice."),
    ("answer", "Answer the question about the speech in one word."),
]
FILES = {"result.json", "arrays.npz", "samples.jsonl", *PICTURES}
QUICK = ("--max-new-tokens", 4)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path, waveform):
    """Four spoken samples under three tasks in turn."""
    made = []
    for i, text in enumerate(TEXTS):
        soundfile.write(tmp_path / f"{i}.wav", waveform(0.5 + i, seed=i), 16_000)
        task, instruction = ASKED[i % 3]
        made.append(
            {"id": f"s{i}", "task": task, "instruction": instruction, "audio": f"{i}.wav", "text": text, "target": text}
        )
    return made


@pytest.fixture
def manifest(tmp_path, rows):
    return write(tmp_path / "clips.jsonl", rows)


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


@pytest.fixture
def run(lsm_probe_command, manifest, tmp_path):
    """`run(*checkpoints, out=..., options=...)` runs the command on the manifest."""

    def command(*checkpoints, out=tmp_path / "out", options=QUICK, data=manifest):
        named = [part for checkpoint in checkpoints for part in ("--ckpt", checkpoint)]
        return lsm_probe_command("sensitivity", *named, "--data", data, "--out", out, *options)

    return command


def errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def files(folder):
    return {path.name for path in folder.iterdir() if path.name[0] != "."}


def sizes(log_probs):
    return np.isfinite(log_probs[:, :, 0]).sum(1).tolist()


def test_one_checkpoint_writes_everything_into_the_folder(run, tiny_lsm_folder, tmp_path):
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


def test_json_goes_to_stdout_and_nothing_else_does(run, tiny_llm_folder, tmp_path):
    code, stdout, _ = run(tiny_llm_folder, options=(*QUICK, "--json"))
    assert code == 0

    def refuse(name):
        raise AssertionError(name)

    printed = json.loads(stdout, parse_constant=refuse)
    assert printed["results"] == [json.loads((tmp_path / "out" / "result.json").read_text())]
    assert printed["comparison"] is None


def test_conventions_reach_the_result(run, tiny_llm_folder, pool, tmp_path):
    options = ("--per", "response", "--pool", "paraphrases", "--response", "reference", "--instructions", pool)
    code, stdout, stderr = run(tiny_llm_folder, options=(*options, "--sources", 2, "--seed", 3))
    assert code == 0, stderr
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    flags = {"per": "response", "pool": "paraphrases", "response": "reference"}
    assert flags.items() <= stored["conventions"].items()
    assert stored["unit"] == "nats per response"
    assert stored["seed"] == 3
    result = SensitivityResult.load(tmp_path / "out")
    assert [sample["response"] for sample in result.samples] == TEXTS
    # The wordings of each sample's task in the file, and its own where it is another.
    assert sizes(result.instruction_log_probs) == [2, 4, 3, 2]
    assert sizes(result.source_log_probs) == [2] * 4
    assert "responses: the reference" in stdout


def test_an_instruction_file_reaches_the_result(run, tiny_llm_folder, pool, tmp_path):
    assert run(tiny_llm_folder, out=tmp_path / "own", options=(*QUICK,))[0] == 0
    again = (*QUICK, "--responses", tmp_path / "own")
    assert run(tiny_llm_folder, out=tmp_path / "file", options=(*again, "--instructions", pool))[0] == 0
    joined = ("--instructions", pool, "--instructions", "probing")
    assert run(tiny_llm_folder, out=tmp_path / "joined", options=(*again, *joined))[0] == 0
    own, file, both = (SensitivityResult.load(tmp_path / name) for name in ("own", "file", "joined"))
    assert sizes(own.instruction_log_probs) == [3] * 4
    assert sizes(file.instruction_log_probs) == [4] * 4
    # `probing` brings three tasks more: its `translation` and `summary` are in the file already.
    assert sizes(both.instruction_log_probs) == [7] * 4
    assert json.loads((tmp_path / "file" / "result.json").read_text())["instruction"]["ceiling"] == pytest.approx(
        np.log(4), abs=1e-6
    )
    np.testing.assert_allclose(file.instruction_log_probs[:, 0], own.instruction_log_probs[:, 0], rtol=1e-4, atol=1e-4)


def test_two_checkpoints_are_compared_and_warned_about(run, tiny_llm_folder, save_llm, tmp_path):
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


def test_what_is_warned_of_in_every_pair_is_said_once(run, tiny_llm_folder, save_llm, tmp_path):
    others = [save_llm(tmp_path / name, seed=seed) for seed, name in enumerate(("second", "third"), start=1)]
    code, _, stderr = run(tiny_llm_folder, *others)
    assert code == 0, stderr
    (warning,) = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert f"{tiny_llm_folder.name} and {others[0]}" in warning
    assert "the same of 2 more pairs" in warning


def test_one_reference_for_both_needs_no_warning(run, tiny_llm_folder, save_llm, tmp_path):
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


def test_the_pictures_of_an_earlier_run_are_drawn_anew(run, tiny_llm_folder, tmp_path):
    assert run(tiny_llm_folder)[0] == 0
    first = {name: (tmp_path / "out" / name).read_bytes() for name in PICTURES}
    assert run(tiny_llm_folder)[0] == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in PICTURES} == first
    assert run(tiny_llm_folder, options=("--response", "reference"))[0] == 0
    assert all((tmp_path / "out" / name).read_bytes() != first[name] for name in PICTURES)


def test_the_folder_of_another_probe_is_refused_and_left_alone(
    run, lsm_probe_command, tiny_llm_folder, manifest, tmp_path
):
    out = tmp_path / "out"
    arguments = ("--ckpt", tiny_llm_folder, "--data", manifest, "--out", out, *QUICK)
    assert lsm_probe_command("attention", *arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, stderr = run(tiny_llm_folder)
    assert code == 2
    (error,) = errors(stderr)
    assert "holds a result of the attention probe: give another folder with --out" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def one_task(manifest, rows):
    return write(manifest, [{**row, "task": "translation", "instruction": ASKED[0][1]} for row in rows])


MISTAKES = {
    "pool of one": (lambda m, rows: ["--data", one_task(m, rows)], "a pool of one instruction says nothing"),
    "no paraphrases": (lambda m, rows: ["--pool", "paraphrases"], "the pool holds no other wording of its task"),
    "one utterance": (lambda m, rows: ["--limit", 1, "--instructions", "probing"], "a pool of one source says nothing"),
    "unknown per": (lambda m, rows: ["--per", "word"], "'word' is not one of 'token', 'response'"),
    "unknown pool": (lambda m, rows: ["--pool", "words"], "'words' is not one of 'tasks', 'paraphrases'"),
    "unknown response": (lambda m, rows: ["--response", "gold"], "'gold' is not one of 'generated', 'reference'"),
    "no such pool": (lambda m, rows: ["--instructions", "magic"], "--instructions magic does not exist"),
    "pool of nothing": (lambda m, rows: ["--instructions", m], "cannot be read as YAML"),
    "no responses": (lambda m, rows: ["--responses", m.parent], "holds no readable result with responses"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(lsm_probe_command, tiny_llm_folder, manifest, rows, tmp_path, mistake):
    make, expected = MISTAKES[mistake]
    options, out = make(manifest, rows), tmp_path / "out"
    data = () if "--data" in options else ("--data", manifest)
    code, stdout, stderr = lsm_probe_command(
        "sensitivity", "--ckpt", tiny_llm_folder, "--out", out, *QUICK, *data, *options
    )
    assert code == 2
    assert len(errors(stderr)) == 1
    assert expected in errors(stderr)[0]
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not (out / "result.json").exists()


def test_a_pool_of_sources_has_two_at_least(run, tiny_llm_folder):
    code, stdout, stderr = run(tiny_llm_folder, options=(*QUICK, "--sources", 1))
    assert code == 2
    assert "--sources" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""


def test_help_names_what_is_written(lsm_probe_command):
    code, stdout, _ = lsm_probe_command("sensitivity", "--help")
    assert code == 0
    for word in ("D_i", "--instructions", "--pool", "--sources", "sensitivity_tokens.csv"):
        assert word in stdout
