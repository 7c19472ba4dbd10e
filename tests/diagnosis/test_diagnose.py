"""A diagnosis of tiny models: each loaded once, the numbers of the single commands, resumed where it stopped."""

import json
import shutil

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.diagnosis.diagnosis import Diagnosis
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.runner import named_checkpoints

QUICK = {"max_new_tokens": 4, "batch_size": 4}
CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def by_task(samples):
    """The eight spoken samples, each instruction a task of its own."""
    return [sample.model_copy(update={"task": sample.instruction.split()[0].lower()}) for sample in samples]


@pytest.fixture(scope="module")
def diagnosed(by_task, tiny_lsm_folder, tiny_llm_folder, tmp_path_factory):
    """The folder of a whole diagnosis, what it returned, and what each model loaded, generated and encoded."""
    out = tmp_path_factory.mktemp("diagnosis") / "out"
    loaded, generated, encoded = [], [], []
    load, generate, embed_speech = named_checkpoints.load, Checkpoint.generate, Lsm._embed_speech

    def counting_load(name, **options):
        loaded.append(str(name))
        return load(name, **options)

    def counting_generate(self, embedded, **options):
        generated.append((self.name, len(embedded), options["max_new_tokens"]))
        return generate(self, embedded, **options)

    def counting_embed_speech(self, prompt, ids, features):
        encoded.append(features["input_features"])
        return embed_speech(self, prompt, ids, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named_checkpoints, "load", counting_load)
        patch.setattr(Checkpoint, "generate", counting_generate)
        patch.setattr(Lsm, "_embed_speech", counting_embed_speech)
        found = lsm_probe.diagnose(tiny_lsm_folder, by_task, base=tiny_llm_folder, out=out, loading=CPU, **QUICK)
    return out, found, loaded, generated, encoded


def test_each_model_is_loaded_once_and_generates_each_response_once(diagnosed, tiny_lsm_folder, tiny_llm_folder):
    _, _, loaded, generated, _ = diagnosed
    assert sorted(loaded) == sorted([str(tiny_llm_folder), str(tiny_lsm_folder)])
    made = {
        name: sum(n for who, n, longest in generated if who == str(name) and longest == 4)
        for name in (tiny_llm_folder, tiny_lsm_folder)
    }
    assert made == {tiny_llm_folder: 8, tiny_lsm_folder: 8}


def test_each_utterance_is_encoded_once(diagnosed, by_task):
    assert len(diagnosed[4]) == len(by_task)


def test_the_folder_holds_every_measurement_the_verdicts_and_the_report(diagnosed, tiny_lsm_folder, tiny_llm_folder):
    out, found, *_ = diagnosed
    folders = {str(path.parent.relative_to(out)) for path in out.glob("*/*/result.json")}
    assert folders == {
        *(f"{part}/llm" for part in ("attention", "sensitivity")),
        *(f"{part}/lsm" for part in ("attention", "sensitivity", "base-words", "knockout", "alignment")),
        "attention/llm-at-length-of-lsm",
        "transcription/lsm",
    }
    assert not (out / "progress").exists()
    assert (out / "report.html").exists()
    assert json.loads((out / "attention" / "comparison.json").read_text())["pairs"]
    stored = Diagnosis.load(out)
    assert stored.to_dict() == found.to_dict()
    assert [verdict.checkpoint for verdict in stored.verdicts] == ["lsm", "llm"]
    assert stored["lsm"] == stored[str(tiny_lsm_folder)]
    assert stored.base == "llm"


@pytest.mark.parametrize(
    ("part", "options", "arrays"),
    [
        ("attention", {}, ("norms", "tokens")),
        ("sensitivity", {"sources": 4}, ("instruction_log_probs", "source_log_probs")),
        ("knockout", {}, ("fall", "fall_all_layers")),
    ],
)
def test_the_numbers_are_those_of_the_single_measurements(diagnosed, by_task, tiny_lsm, part, options, arrays):
    out = diagnosed[0]
    ids = [json.loads(line)["id"] for line in (out / part / "lsm" / "samples.jsonl").read_text().splitlines()]
    chosen = [sample for sample in by_task if sample.id in ids]
    alone = getattr(lsm_probe, part)(tiny_lsm, chosen, **options, **QUICK)
    with np.load(out / part / "lsm" / "arrays.npz") as stored:
        for name in arrays:
            np.testing.assert_allclose(stored[name], getattr(alone, name), rtol=1e-5, atol=1e-6)
    summary = json.loads((out / part / "lsm" / "result.json").read_text())
    assert "responses" not in summary["checkpoint"]  # they count as its own, though they were not generated again
    assert summary["data"]["sha256"] == alone.data.sha256


def test_an_interrupted_diagnosis_resumes(diagnosed, by_task, tiny_lsm_folder, tiny_llm_folder, tmp_path):
    out = tmp_path / "out"
    options = {"base": tiny_llm_folder, "out": out, "loading": CPU, **QUICK}

    def stop_in_knockout(name, done, total, note=""):
        if note.startswith("knockout"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lsm_probe.diagnose(tiny_lsm_folder, by_task, on_progress=stop_in_knockout, **options)
    assert not (out / "diagnosis.json").exists()
    with pytest.raises(InputError, match="continue with --resume"):
        lsm_probe.diagnose(tiny_lsm_folder, by_task, **options)
    with pytest.raises(InputError, match=r"was started with other settings or data \(seed\)"):
        lsm_probe.diagnose(tiny_lsm_folder, by_task, resume=True, seed=5, **options)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/result.json")}
    found = lsm_probe.diagnose(tiny_lsm_folder, by_task, resume=True, **options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert found.to_dict() == diagnosed[1].to_dict()


def test_a_checkpoint_added_on_resume_is_the_only_one_measured(by_task, tiny_lsm_folder, tiny_llm_folder, tmp_path):
    out, added = tmp_path / "out", tmp_path / "added"
    options = {"base": tiny_llm_folder, "quick": True, "loading": CPU, **QUICK}
    lsm = lsm_probe.load(tiny_lsm_folder, **CPU)
    with torch.no_grad():
        next(lsm.model.multi_modal_projector.parameters()).mul_(-1)
    lsm.save(added)
    lsm_probe.diagnose(tiny_lsm_folder, by_task, out=out, **options)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/result.json")}
    with pytest.raises(InputError, match=r"was started with other settings or data \(checkpoints\)"):
        lsm_probe.diagnose(added, by_task, out=out, resume=True, **options)
    both = [tiny_lsm_folder, added]
    found = lsm_probe.diagnose(both, by_task, out=out, resume=True, **options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert found.to_dict() == lsm_probe.diagnose(both, by_task, out=tmp_path / "new", **options).to_dict()
    with pytest.raises(InputError, match=r"\(checkpoints\)"):  # a checkpoint is never left out of a folder in silence
        lsm_probe.diagnose(tiny_lsm_folder, by_task, out=out, resume=True, **options)


def test_responses_of_a_base_with_another_tokenizer_are_tokenised_again(
    by_task, tiny_lsm_folder, save_llm, make_tokenizer, tmp_path
):
    base = save_llm(tmp_path / "base", seed=3)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["quick brown"])
    tokenizer.save_pretrained(base)
    with pytest.warns(UserWarning, match="has another tokenizer than"):
        lsm_probe.diagnose(tiny_lsm_folder, by_task, base=base, out=tmp_path / "out", loading=CPU, **QUICK)
    words = [
        {row["id"]: row["response"] for row in map(json.loads, path.read_text().splitlines())}
        for path in (tmp_path / "out" / "base-words" / "lsm" / "samples.jsonl",
                     tmp_path / "out" / "attention" / "base" / "samples.jsonl")
    ]  # fmt: skip
    assert words[0]
    assert all(words[1][sample] == text for sample, text in words[0].items())


def test_measurements_that_a_model_does_not_allow_are_reported_and_the_rest_is_made(by_task, tiny_lsm, monkeypatch):
    from lsm_probe.errors import NotMeasurable
    from lsm_probe.probes.attention import measure

    def refuse(*arguments):
        raise NotMeasurable("layer 0: it attends more than once in a pass")

    monkeypatch.setattr(measure, "open_backend", refuse)
    found = lsm_probe.diagnose(tiny_lsm, by_task, quick=True, **QUICK)
    [verdict] = found.verdicts
    assert "attention could not be measured: layer 0: it attends more than once in a pass." in verdict.warnings
    assert "source_sensitivity" in {each.key for each in verdict.evidence}


def test_a_model_that_answers_nothing_gets_no_verdict(by_task, tiny_lsm, monkeypatch):
    monkeypatch.setattr(Checkpoint, "generate", lambda self, embedded, **_: [[] for _ in embedded])
    [verdict] = lsm_probe.diagnose(tiny_lsm, by_task, quick=True, **QUICK).verdicts
    assert verdict.verdict == "cannot tell"
    assert any("empty response" in warning for warning in verdict.warnings)


def test_a_copy_of_a_checkpoint_is_refused(by_task, tiny_lsm_folder, tmp_path):
    copy = shutil.copytree(tiny_lsm_folder, tmp_path / "copy")
    with pytest.raises(InputError, match="has the same weights as"):
        lsm_probe.diagnose([tiny_lsm_folder, copy], by_task, quick=True, loading=CPU, **QUICK)


def test_a_text_llm_among_the_checkpoints_is_the_base(by_task, tiny_lsm_folder, tiny_llm_folder):
    found = lsm_probe.diagnose([tiny_lsm_folder, tiny_llm_folder], by_task, quick=True, loading=CPU, **QUICK)
    assert found.base == "llm"
    assert found["lsm"].evidence[0].compared_with.startswith(("the base LLM", "the ceiling"))
    assert not any("There is no base LLM" in warning for warning in found["lsm"].warnings)


def test_without_out_no_files_remain(by_task, tiny_lsm, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert lsm_probe.diagnose(tiny_lsm, by_task[:2], quick=True, **QUICK).verdicts[0].verdict == "cannot tell"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "builtin:untrained"}, "--base builtin:untrained reads speech"),
        ({"samples": []}, "there are no samples to diagnose on"),
        ({"checkpoints": []}, "there is no checkpoint to diagnose"),
        ({"base": "builtin:llm", "samples": "without text"}, "have no `text`, which builtin:llm needs here"),
    ],
)
def test_invalid_input_is_refused_before_a_model_is_loaded(by_task, tiny_lsm_folder, arguments, message):
    given = {"checkpoints": tiny_lsm_folder, "samples": by_task, **arguments}
    if given["samples"] == "without text":
        given["samples"] = [sample.model_copy(update={"text": None}) for sample in by_task]
    with pytest.raises(InputError, match=message):
        lsm_probe.diagnose(**given)
