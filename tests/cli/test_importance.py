"""`lsm-probe importance`: files, table, resuming, and one line for every error."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from lsm_probe.probes.importance import PROBE
from lsm_probe.probes.importance.learning_rates import layer_rates
from lsm_probe.probes.importance.masks import jaccard
from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.probes.importance.tables import importance_note
from lsm_probe.training.config import Stage

PICTURES = PROBE.picture_names()

COMMAND = ("importance",)
DATA = {"result.json", "arrays.npz", "samples.jsonl"}


@pytest.fixture
def run(run, monkeypatch):
    """`run(*checkpoints, ...)` runs the command; plotting takes long, so it is off by default."""

    def command(*checkpoints, draw=False, **given):
        with monkeypatch.context() as patch:
            if not draw:
                patch.setattr("lsm_probe.probes.importance.plot.save_importance", lambda results, out: None)
            return run(*checkpoints, **given)

    return command


@pytest.mark.usefixtures("rendered")
def test_one_checkpoint_writes_all_files_into_the_folder(run, files, tiny_lsm_folder, tmp_path):
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


def test_masks_are_written_on_request(run, files, tiny_llm_folder, tmp_path):
    code, _, stderr = run(tiny_llm_folder, options=("--masks", 0.05))
    assert code == 0, stderr
    assert files(tmp_path / "out") == DATA | {"masks.npz"}
    masks = ImportanceResult.load(tmp_path / "out").masks
    assert masks.share == 0.05
    assert all(masks.mask(name).sum() == round(0.05 * masks.mask(name).size) for name in masks.packed)


def test_ablation_reports_perplexities(run, tiny_llm_folder, tmp_path):
    code, stdout, stderr = run(tiny_llm_folder, options=("--ablate", 0.03))
    assert code == 0, stderr
    result = ImportanceResult.load(tmp_path / "out")
    found = result.ablation
    assert list(found["perplexity"]) == ["none", "top", "bottom", "random"]
    shown = ", ".join(f"{which} {value:.4g}" for which, value in found["perplexity"].items())
    assert f"perplexity with 3 % of each matrix set to 0: {shown}" in stdout
    for broken in (6.1e6, 1.7e7):  # worse than random
        perplexity = {"none": 2.5, "top": broken, "bottom": 2.5, "random": 7.5}
        note = importance_note(replace(result, ablation={"share": 0.03, "perplexity": perplexity}))
        assert "none 2.5, top about 1e7, bottom 2.5, random 7.5" in note


def test_convention_options_are_stored_in_the_result(run, strict, tiny_lsm_folder, tmp_path):
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


def test_given_responses_are_used(run, tiny_llm_folder, tiny_lsm_folder, tmp_path):
    own = ("--response", "generated", "--max-new-tokens", 3)
    assert run(tiny_lsm_folder, out=tmp_path / "first", options=own)[0] == 0
    code, stdout, _ = run(tiny_llm_folder, options=("--responses", tmp_path / "first"))
    assert code == 0
    first, second = (ImportanceResult.load(tmp_path / name) for name in ("first", "out"))
    assert second.responses() == first.responses()
    assert "responses: given" in stdout


def test_two_checkpoints_are_compared(run, files, strict, tiny_llm_folder, tiny_lsm_folder, tmp_path):
    """The text LLM and an LSM trained from it, on the transcript."""
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


def test_modality_text_needs_no_audio_for_an_lsm(run, tiny_llm_folder, tiny_lsm_folder, manifest, rows, write):
    write(manifest, *(json.dumps({key: value for key, value in row.items() if key != "audio"}) for row in rows))
    assert run(tiny_llm_folder, tiny_lsm_folder, options=("--modality", "text"))[0] == 0
    code, _, stderr = run(tiny_llm_folder, tiny_lsm_folder)
    assert code == 2
    assert f"4 of 4 samples have no `audio`, which {tiny_lsm_folder} needs here" in stderr


def test_different_weights_have_a_shift_of_importance(run, strict, tiny_llm_folder, save_llm, tmp_path):
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


def test_a_model_of_another_depth_gives_a_warning(run, strict, tiny_llm_folder, save_llm, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers, model.config.layer_types = 2, None
    model.save_pretrained(tmp_path / "shallow")
    AutoTokenizer.from_pretrained(tiny_llm_folder).save_pretrained(tmp_path / "shallow")
    code, stdout, stderr = run(tiny_llm_folder, tmp_path / "shallow")
    assert code == 0, stderr
    warning = f"{tiny_llm_folder} has 3 layers and {tmp_path / 'shallow'} 2: the shift cannot be computed"
    assert f"warning: {warning}" in stderr
    (pair,) = strict((tmp_path / "out" / "comparison.json").read_text())["pairs"]
    assert (pair["shift"], pair["warning"]) == (None, warning)
    assert "1/3" in stdout  # groups of layers, because layer numbers mean different depths


def test_written_learning_rates_can_be_read_by_training(run, tiny_llm_folder, tmp_path):
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
def test_an_interrupted_run_resumes_to_the_same_numbers(run, files, tiny_lsm_folder, tmp_path, monkeypatch, options):
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
    # Sums are resumed; per-weight sums start again.
    assert measured == (["s2", "s3"] if len(options) == 2 else ["s0", "s1", "s2", "s3"])
    whole, resumed = ImportanceResult.load(tmp_path / "whole"), ImportanceResult.load(tmp_path / "out")
    np.testing.assert_array_equal(resumed.sums, whole.sums)
    assert resumed.to_dict() == whole.to_dict()
    assert files(tmp_path / "out") == DATA


def test_scores_kept_in_files_equal_those_kept_in_memory(run, strict, tiny_llm_folder, save_llm, tmp_path):
    """For two checkpoints one after the other, whose parameters have the same names."""
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
    shift = strict((tmp_path / "files" / "comparison.json").read_text())["pairs"][0]["shift"]
    assert isinstance(shift["jensen_shannon"], float)  # signed importance has no interval
    left = {path.name: path.stat().st_size for path in (tmp_path / "scratch").iterdir()}
    assert left == {f"{p['name']}.f32": 4 * int(np.prod(p["shape"])) for p in memory.parameters}
