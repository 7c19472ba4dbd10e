"""`lsm-probe importance` through its own door: files, table, resuming, and one line for every mistake."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import yaml

import lsm_probe
from lsm_probe.instruments.scoring import NOT_FINITE
from lsm_probe.probes.importance import PROBE
from lsm_probe.probes.importance.learning_rates import layer_rates
from lsm_probe.probes.importance.masks import jaccard
from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.probes.importance.table import importance_note
from lsm_probe.training.config import Stage

PICTURES = PROBE.pictures

TEXTS = ["the quick brown fox", "rain falls softly", "the old town sells sea shells", "green"]
DATA = {"result.json", "arrays.npz", "samples.jsonl"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path, waveform):
    """Four spoken samples with transcripts and targets."""
    made = []
    for i, text in enumerate(TEXTS):
        soundfile.write(tmp_path / f"{i}.wav", waveform(0.5 + i, seed=i), 16_000)
        made.append(
            {"id": f"s{i}", "instruction": "Repeat it.", "audio": f"{i}.wav", "text": text, "target": f"say {text}"}
        )
    return made


@pytest.fixture
def manifest(tmp_path, rows):
    return write(tmp_path / "clips.jsonl", rows)


@pytest.fixture
def run(lsm_probe_command, manifest, tmp_path, monkeypatch):
    """`run(*checkpoints, out=..., options=...)` runs the command; drawing takes long, so it must be asked for."""

    def command(*checkpoints, out=tmp_path / "out", options=(), draw=False):
        named = [part for checkpoint in checkpoints for part in ("--ckpt", checkpoint)]
        with monkeypatch.context() as patch:
            if not draw:
                patch.setattr("lsm_probe.probes.importance.plot.save_importance", lambda results, out: None)
            return lsm_probe_command("importance", *named, "--data", manifest, "--out", out, *options)

    return command


def errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def files(folder):
    return {path.name for path in folder.glob("[!.]*")}


def strict(text):
    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_one_checkpoint_writes_everything_into_the_folder(run, tiny_lsm_folder, tmp_path):
    code, stdout, stderr = run(tiny_lsm_folder, options=("--limit", 2), draw=True)
    out = tmp_path / "out"
    assert code == 0, stderr
    assert files(out) == DATA | set(PICTURES)
    result = ImportanceResult.load(out)
    assert result.ids == ["s0", "s1"]
    shares = 100 * result.distribution()
    assert all(f"{share:.1f}" in stdout for share in shares)
    assert f"{result.by_layer().mean.sum():.1f}" in stdout
    assert f"{tiny_lsm_folder}: 2 samples, 0 left out; responses: the reference; mode abs" in stdout
    assert f"peak at layer {result.by_layer().mean.argmax()}" in stdout
    assert "not trained, so not measured: audio_tower" in stdout
    assert "perplexity" not in stdout
    assert (out / "importance.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "importance.csv").read_text().splitlines()) == 1 + len(result.parameters)


def test_masks_are_written_where_they_are_asked_for(run, tiny_llm_folder, tmp_path):
    code, _, stderr = run(tiny_llm_folder, options=("--masks", 0.05))
    assert code == 0, stderr
    assert files(tmp_path / "out") == DATA | {"masks.npz"}
    masks = ImportanceResult.load(tmp_path / "out").masks
    assert masks.share == 0.05
    assert all(masks.mask(name).sum() == round(0.05 * masks.mask(name).size) for name in masks.packed)


def test_masks_of_an_earlier_run_are_gone(run, tiny_llm_folder, save_llm, tmp_path):
    """Also where the new run has folders of its own for its checkpoints."""
    second = save_llm(tmp_path / "second", seed=1)
    assert run(tiny_llm_folder, options=("--masks", 0.05))[0] == 0
    assert run(tiny_llm_folder)[0] == 0
    assert files(tmp_path / "out") == DATA
    assert run(tiny_llm_folder, options=("--masks", 0.05))[0] == 0
    assert run(tiny_llm_folder, second)[0] == 0
    assert files(tmp_path / "out") == {"comparison.json", tiny_llm_folder.name, "second"}


def test_json_goes_to_stdout_and_nothing_else_does(run, tiny_llm_folder, tmp_path):
    code, stdout, _ = run(
        tiny_llm_folder, options=("--json", "--masks", 0.05, "--mode", "signed", "--write-lr-schedule", tmp_path / "r")
    )
    assert code == 0
    printed = strict(stdout)
    assert printed["results"] == [strict((tmp_path / "out" / "result.json").read_text())]
    assert printed["comparison"] is None


def test_ablation_shows_perplexities(run, tiny_llm_folder, tmp_path):
    code, stdout, stderr = run(tiny_llm_folder, options=("--ablate", 0.03))
    assert code == 0, stderr
    found = ImportanceResult.load(tmp_path / "out").ablation
    assert list(found["perplexity"]) == ["none", "top", "bottom", "random"]
    shown = ", ".join(f"{which} {value:.4g}" for which, value in found["perplexity"].items())
    assert f"perplexity with 3 % of each matrix at 0: {shown}" in stdout


def test_a_perplexity_worse_than_guessing_is_shown_in_its_order_of_magnitude(run, tiny_llm_folder, tmp_path):
    assert run(tiny_llm_folder, options=("--ablate", 0.03))[0] == 0
    result = ImportanceResult.load(tmp_path / "out")
    for broken in (6.1e6, 1.7e7):  # what two machines may find
        perplexity = {"none": 2.5, "top": broken, "bottom": 2.5, "random": 7.5}
        note = importance_note(replace(result, ablation={"share": 0.03, "perplexity": perplexity}))
        assert "none 2.5, top about 1e7, bottom 2.5, random 7.5" in note


def test_conventions_reach_the_result(run, tiny_lsm_folder, tmp_path):
    options = ("--mode", "signed", "--modality", "text", "--response", "generated", "--max-new-tokens", 3, "--seed", 5)
    code, stdout, stderr = run(tiny_lsm_folder, options=options)
    assert code == 0, stderr
    stored = strict((tmp_path / "out" / "result.json").read_text())
    assert stored["conventions"] == {"mode": "signed", "modality": "text", "response": "generated"}
    assert stored["seed"] == 5
    assert stored["checkpoint"]["source"] == "text"
    assert stored["by_layer"]["ci_low"] == [None] * 3
    result = ImportanceResult.load(tmp_path / "out")
    assert max(len(response) for response in result.responses().values()) <= 3
    assert "responses: its own; mode signed" in stdout


def test_given_responses_are_measured(run, tiny_llm_folder, tiny_lsm_folder, tmp_path):
    own = ("--response", "generated", "--max-new-tokens", 3)
    assert run(tiny_lsm_folder, out=tmp_path / "first", options=own)[0] == 0
    code, stdout, _ = run(tiny_llm_folder, options=("--responses", tmp_path / "first"))
    assert code == 0
    first, second = (ImportanceResult.load(tmp_path / name) for name in ("first", "out"))
    assert second.responses() == first.responses()
    assert "responses: given" in stdout


def test_two_checkpoints_are_compared(run, tiny_llm_folder, tiny_lsm_folder, tmp_path):
    """The text LLM and its speech-tuned child, on the transcript."""
    code, stdout, stderr = run(
        tiny_llm_folder, tiny_lsm_folder, options=("--modality", "text", "--masks", 0.1), draw=True
    )
    assert code == 0, stderr
    out = tmp_path / "out"
    folders = {tiny_llm_folder.name, tiny_lsm_folder.name}
    assert files(out) == {"comparison.json", *PICTURES, *folders}
    assert files(out / tiny_llm_folder.name) == DATA | {"masks.npz"}
    comparison = strict((out / "comparison.json").read_text())
    assert comparison["probe"] == "importance"
    (pair,) = comparison["pairs"]
    # The same weights read the same transcript.
    assert pair["shift"]["jensen_shannon"]["mean"] == 0
    assert pair["shift"]["mask_overlap"] == {"mean": 1.0, "by_chance": pytest.approx(0.1 / 1.9)}
    assert pair["warning"] is None
    assert "warning:" not in stderr
    assert str(tiny_llm_folder) in stdout
    assert str(tiny_lsm_folder) in stdout


def test_modality_text_needs_no_audio_of_an_lsm(run, tiny_llm_folder, tiny_lsm_folder, manifest, rows):
    write(manifest, [{key: value for key, value in row.items() if key != "audio"} for row in rows])
    assert run(tiny_llm_folder, tiny_lsm_folder, options=("--modality", "text"))[0] == 0
    code, _, stderr = run(tiny_llm_folder, tiny_lsm_folder)
    assert code == 2
    assert f"4 of 4 samples have no `audio`, which {tiny_lsm_folder} needs here" in stderr


def test_other_weights_have_shifted(run, tiny_llm_folder, save_llm, tmp_path):
    second = save_llm(tmp_path / "second", seed=1)
    rates = tmp_path / "rates.yaml"
    assert run(tiny_llm_folder, second, options=("--masks", 0.1, "--write-lr-schedule", rates))[0] == 0
    out = tmp_path / "out"
    results = [ImportanceResult.load(out / name) for name in (tiny_llm_folder.name, "second")]
    shift = strict((out / "comparison.json").read_text())["pairs"][0]["shift"]
    expected = results[1].distribution() - results[0].distribution()
    np.testing.assert_allclose(shift["share_difference"]["mean"], expected, atol=1e-6)
    assert shift["jensen_shannon"]["mean"] > 0
    assert shift["peak_layer"] == [int(result.by_layer().mean.argmax()) for result in results]
    assert yaml.safe_load(rates.read_text())["rates"] == layer_rates(results[0], 0.4)  # of the first, the base LLM
    overlap = jaccard(results[0].masks, results[1].masks)
    assert shift["mask_overlap"]["mean"] == pytest.approx(np.mean(list(overlap.values())))


def test_signed_results_are_compared_without_intervals(run, tiny_llm_folder, save_llm, tmp_path):
    second = save_llm(tmp_path / "second", seed=1)
    code, _, stderr = run(tiny_llm_folder, second, options=("--mode", "signed"))
    assert code == 0, stderr
    shift = strict((tmp_path / "out" / "comparison.json").read_text())["pairs"][0]["shift"]
    assert isinstance(shift["jensen_shannon"], float)
    first, last = (ImportanceResult.load(tmp_path / "out" / name) for name in (tiny_llm_folder.name, "second"))
    np.testing.assert_allclose(shift["share_difference"], last.distribution() - first.distribution(), atol=1e-6)


def test_a_model_of_another_depth_is_warned_about(run, tiny_llm_folder, save_llm, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers, model.config.layer_types = 2, None
    model.save_pretrained(tmp_path / "shallow")
    AutoTokenizer.from_pretrained(tiny_llm_folder).save_pretrained(tmp_path / "shallow")
    code, stdout, stderr = run(tiny_llm_folder, tmp_path / "shallow")
    assert code == 0, stderr
    warning = f"{tiny_llm_folder} has 3 layers and {tmp_path / 'shallow'} 2: no shift to speak of"
    assert f"warning: {warning}" in stderr
    (pair,) = strict((tmp_path / "out" / "comparison.json").read_text())["pairs"]
    assert (pair["shift"], pair["warning"]) == (None, warning)
    assert "1/3" in stdout  # groups of layers, as their numbers mean other things


def test_learning_rates_are_written_as_training_reads_them(run, tiny_llm_folder, tmp_path):
    path = tmp_path / "new" / "rates.yaml"
    code, _, stderr = run(tiny_llm_folder, options=("--write-lr-schedule", path, "--strength", 0.3))
    assert code == 0, stderr
    result = ImportanceResult.load(tmp_path / "out")
    assert Stage(strategy="layerwise_lr", layer_rates=path).layer_rates == layer_rates(result, 0.3)
    stored = yaml.safe_load(path.read_text())
    assert stored["strength"] == 0.3
    assert stored["importance"]["checkpoint"] == str(tiny_llm_folder)
    assert min(stored["rates"]) == 0.7
    assert run(tiny_llm_folder, options=("--write-lr-schedule", path))[0] == 0
    assert min(yaml.safe_load(path.read_text())["rates"]) == 0.6  # by default


@pytest.mark.parametrize("options", [(), ("--mode", "signed")], ids=["sums", "single weights"])
def test_an_interrupted_run_resumes_to_the_same_numbers(run, tiny_lsm_folder, tmp_path, monkeypatch, options):
    from lsm_probe.probes.importance import measure as module

    options = (*options, "--batch-size", 1)
    assert run(tiny_lsm_folder, out=tmp_path / "whole", options=options)[0] == 0
    loss, measured = module.response_loss, []

    def interrupted(checkpoint, subject):
        measured.append(subject.sample.id)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return loss(checkpoint, subject)

    with monkeypatch.context() as patch:
        patch.setattr(module, "response_loss", interrupted)
        code, _, stderr = run(tiny_lsm_folder, options=options)
    assert code == 130
    assert "--resume" in stderr
    assert "result.json" not in files(tmp_path / "out")
    measured.clear()
    monkeypatch.setattr(module, "response_loss", lambda c, s: measured.append(s.sample.id) or loss(c, s))
    code, _, stderr = run(tiny_lsm_folder, options=(*options, "--resume"))
    assert code == 0, stderr
    # Sums go on where they stopped; what is added up by single weights begins afresh.
    assert measured == (["s2", "s3"] if len(options) == 2 else ["s0", "s1", "s2", "s3"])
    whole, resumed = ImportanceResult.load(tmp_path / "whole"), ImportanceResult.load(tmp_path / "out")
    np.testing.assert_array_equal(resumed.sums, whole.sums)
    assert resumed.to_dict() == whole.to_dict()
    assert files(tmp_path / "out") == DATA


def test_numbers_kept_in_files_are_those_kept_in_memory(run, tiny_llm_folder, save_llm, tmp_path):
    """For two checkpoints in turn, whose parameters have the same names."""
    second = save_llm(tmp_path / "second", seed=1)
    options = ("--mode", "signed", "--masks", 0.05, "--ablate", 0.1)
    kept = ("--scratch", tmp_path / "scratch")
    assert run(tiny_llm_folder, second, out=tmp_path / "memory", options=options)[0] == 0
    assert run(tiny_llm_folder, second, out=tmp_path / "files", options=(*options, *kept))[0] == 0
    for name in (tiny_llm_folder.name, "second"):
        memory, filed = (ImportanceResult.load(tmp_path / where / name) for where in ("memory", "files"))
        assert filed.to_dict() == memory.to_dict()
        np.testing.assert_array_equal(filed.signed, memory.signed)
        assert set(jaccard(filed.masks, memory.masks).values()) == {1.0}
    left = {path.name: path.stat().st_size for path in (tmp_path / "scratch").iterdir()}
    assert left == {f"{p['name']}.f32": 4 * int(np.prod(p["shape"])) for p in memory.parameters}


def test_a_sample_that_cannot_be_used_can_be_skipped(run, tiny_llm_folder, manifest, rows, tmp_path):
    long = {**rows[0], "id": "long", "text": "word " * 2_000}
    write(manifest, [*rows, long])
    code, _, stderr = run(tiny_llm_folder)
    assert code == 2
    assert "sample long" in errors(stderr)[0]
    code, stdout, stderr = run(tiny_llm_folder, options=("--on-error", "skip", "--ablate", 0.1))
    assert code == 0, stderr
    assert "4 samples, 1 left out" in stdout
    assert ImportanceResult.load(tmp_path / "out").ids == ["s0", "s1", "s2", "s3"]


def test_the_folder_of_another_probe_is_refused_and_left_alone(
    run, lsm_probe_command, tiny_llm_folder, manifest, tmp_path
):
    out = tmp_path / "out"
    arguments = ("--ckpt", tiny_llm_folder, "--data", manifest, "--out", out, "--max-new-tokens", 3)
    assert lsm_probe_command("attention", *arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, stderr = run(tiny_llm_folder)
    assert code == 2
    (error,) = errors(stderr)
    assert "holds a result of the attention probe: give another folder with --out" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_weights_that_hold_nan_are_one_line(run, tiny_llm_folder, tmp_path):
    checkpoint = lsm_probe.load(tiny_llm_folder, device="cpu", dtype="float32")
    with torch.no_grad():
        checkpoint.model.model.layers[2].mlp.gate_proj.weight[3, 4] = torch.nan
    checkpoint.save(tmp_path / "broken")
    code, stdout, stderr = run(tmp_path / "broken")
    assert (code, stdout) == (2, "")
    (error,) = errors(stderr)
    assert error == f"error: sample s0: {NOT_FINITE}"


def without(key):
    return lambda m, rows: ["--data", write(m, [{k: v for k, v in row.items() if k != key} for row in rows])]


MISTAKES = {
    "share of 2": (lambda m, rows: ["--masks", 2], "--masks 2.0 is no share of weights: give a number between 0 and 1"),
    "share of 0": (lambda m, rows: ["--ablate", 0], "--ablate 0.0 is no share of weights"),
    "negative share": (lambda m, rows: ["--ablate", "-0.5"], "--ablate -0.5 is no share of weights"),
    "no target": (without("target"), "4 of 4 samples have no `target`"),
    "no text": (without("text"), "4 of 4 samples have no `text`"),
    "unknown mode": (lambda m, rows: ["--mode", "squared"], "'squared' is not one of 'abs', 'signed'"),
    "unknown modality": (lambda m, rows: ["--modality", "touch"], "'touch' is not one of 'own', 'text'"),
    "unknown response": (lambda m, rows: ["--response", "gold"], "'gold' is not one of 'generated', 'reference'"),
    "strength of 1": (lambda m, rows: ["--strength", 1], "a strength of 1.0 makes no learning rates"),
    "no responses": (lambda m, rows: ["--responses", m.parent], "holds no readable result with responses"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(lsm_probe_command, tiny_llm_folder, manifest, rows, tmp_path, mistake):
    make, expected = MISTAKES[mistake]
    options, out = make(manifest, rows), tmp_path / "out"
    data = () if "--data" in options else ("--data", manifest)
    code, stdout, stderr = lsm_probe_command("importance", "--ckpt", tiny_llm_folder, "--out", out, *data, *options)
    assert code == 2
    assert len(errors(stderr)) == 1
    assert expected in errors(stderr)[0]
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not (out / "result.json").exists()


@pytest.mark.parametrize("option", ["--scratch", "--write-lr-schedule"])
def test_a_path_that_cannot_be_written_is_one_line_and_exit_code_2(run, tiny_llm_folder, manifest, option):
    """A file where a folder is wanted, and the other way round; ideally said before the run."""
    path = manifest if option == "--scratch" else manifest.parent
    code, _, stderr = run(tiny_llm_folder, options=("--masks", 0.1, option, path))
    assert code == 2
    assert str(path) in errors(stderr)[0]


def test_help_names_what_is_written(lsm_probe_command):
    code, stdout, _ = lsm_probe_command("importance", "--help")
    assert code == 0
    for word in ("--masks", "--ablate", "--write-lr-schedule", "--scratch", "importance.png", "masks.npz"):
        assert word in stdout
