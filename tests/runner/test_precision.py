"""Half precision is reported, and compared with float32 on request, without other changes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.evaluation.task import Task
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.reports.collection import read_results
from lsm_probe.reports.report import report_page
from lsm_probe.runner import measurement_run
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.precision import PrecisionCheck
from lsm_probe.runner.tables import precision_notes

QUICK = {"max_new_tokens": 3, "batch_size": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {},
    "sensitivity": {"pool": "paraphrases", "sources": 2},
    "knockout": {"window": 1},
    "alignment": {"perplexity": 1.0},
    "importance": {"response": "generated"},
}
NUMBERS = {
    "attention": {"eta"},
    "sensitivity": {"D_i (nats per token)", "D_s (nats per token)"},
    "knockout": {"fall (nats per token)"},
    "alignment": {"paired cosine"},
    "importance": {"importance of a layer (relative)"},
}


@pytest.fixture
def half(tiny_lsm_folder: Path) -> Checkpoint:
    return lsm_probe.load(tiny_lsm_folder, device="cpu", dtype="float16")


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return all(tensor.dtype == after[name].dtype and tensor.equal(after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("probe", OPTIONS)
def test_the_drift_is_measured_against_float32_with_the_same_weights(
    probe: str, half: Checkpoint, tiny_lsm_folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    before, measure, options = weights(half), getattr(lsm_probe, probe), {**QUICK, **OPTIONS[probe]}
    samples = samples[:5]  # the fewest that alignment takes
    found = measure(half, samples, **options, verify_precision=2)
    assert same(before, weights(half))

    exact = lsm_probe.load(tiny_lsm_folder, device="cpu", dtype="float32")
    exact.model.load_state_dict({name: tensor.float() for name, tensor in before.items()})
    if probe != "alignment":
        options["responses"] = found.responses()
    reference = measure(exact, samples, **options).subset(found.ids[:2])
    changes = found.subset(found.ids[:2]).drift_from(reference)
    assert set(found.precision_drift()) == set(changes) == NUMBERS[probe]
    for name, change in changes.items():
        drift = found.precision_drift()[name]
        assert drift["sample"] == pytest.approx(np.nanmax(np.abs(change)), rel=0.01, abs=2e-6)
        assert drift["mean"] == pytest.approx(np.nanmax(np.abs(np.nanmean(change, 0))), rel=0.01, abs=2e-6)
        assert 0 < drift["mean"] <= drift["sample"] < 0.1

    again = type(found).load(found.save(tmp_path))
    assert again.precision_note() == found.precision_note()
    assert "computed in float16; compared with float32 on 2 samples" in str(again.precision_note())
    stored = json.loads((tmp_path / "result.json").read_text())["precision"]
    assert (stored["dtype"], stored["verified"]) == ("float16", found.ids[:2])
    assert (stored["changed_responses"] is None) == (probe == "alignment")


@dataclass(frozen=True, kw_only=True)
class Depth(lsm_probe.MeasurementResult):
    NAME = "depth"
    BY_SAMPLE = ("by_layer", "tokens")

    by_layer: np.ndarray
    tokens: np.ndarray


def test_results_of_other_packages_compare_their_arrays() -> None:
    about = CheckpointIdentity(
        name="llm", source="text", template="chat", dtype="bfloat16", quantised="Linear, Int8Tensor"
    )
    result = Depth(
        clusters=np.arange(3),
        samples=[{"id": sample} for sample in "abc"],
        checkpoint=about,
        data=DataIdentity("data", "x", 3),
        by_layer=np.array([[1.0, 2], [3, np.nan], [5, 6]]),
        tokens=np.array([4, 5, 6]),
        precision=PrecisionCheck(["a", "b"], {"by_layer": np.array([[0.9, 2.2], [3.3, 1]])}, changed=["b"]),
    )
    drift = {"by layer": {"mean": pytest.approx(0.2), "sample": pytest.approx(0.3)}}
    assert result.precision_drift() == drift
    assert result.subset(["c"]).precision_drift() == {}
    note = (
        "quantised weights (Linear, Int8Tensor): numbers hold for these, not for those before quantisation; "
        "computed in bfloat16; compared with float32 on 2 samples; "
        "by layer differs by up to 0.2 in the mean and 0.3 in a sample; "
        "1 of 2 greedy responses differs"
    )
    assert precision_notes([]) == []
    assert precision_notes([result, result]) == [f"Q{note[1:]}."]
    other = replace(result, checkpoint=replace(about, name="other", dtype="float32", quantised=None))
    warning = (
        "dtypes differ (llm: bfloat16, other: float32), and the error of half precision may be as large as the "
        "difference between the results: measure all with --dtype float32, or compare the difference with the error "
        "that --verify-precision reports"
    )
    assert precision_notes([result, other]) == [f"llm: {note}.", f"D{warning[1:]}."]
    assert lsm_probe.compare([result, other])["pairs"][0]["warning"] == warning
    assert lsm_probe.compare([result, replace(result, precision=None)])["pairs"][0]["warning"] is None


def test_without_the_option_the_note_reports_no_comparison(half: Checkpoint, samples: list[Sample]) -> None:
    found = lsm_probe.attention(half, samples[:2], **QUICK)
    assert found.to_dict()["precision"] == {"dtype": "float16", "verified": [], "changed_responses": None, "drift": {}}
    line = "computed in float16; not compared with float32 (--verify-precision 4 does so on 4 samples)"
    assert found.precision_note() == line
    assert line in found._repr_html_()


def test_changed_greedy_responses_are_counted(
    half: Checkpoint, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Checkpoint.generate

    def other_in_float32(self: Checkpoint, embedded: list[torch.Tensor], **options: Any) -> list[list[int]]:
        found = generate(self, embedded, **options)
        return [[*found[0][:-1], 7], *found[1:]] if self.llm.dtype == torch.float32 else found

    monkeypatch.setattr(Checkpoint, "generate", other_in_float32)
    task = Task(name="said", title="Said", metrics=("word_error_rate",))
    asked = [sample.model_copy(update={"task": "said"}) for sample in samples[:3]]
    found = lsm_probe.evaluate(half, asked, tasks=[task], **QUICK, verify_precision=3)
    assert found.precision is not None
    assert found.precision.changed == [found.precision.ids[0]]
    assert found.precision_note() == (
        "computed in float16; compared with float32 on 3 samples; 1 of 3 greedy responses differs"
    )


@pytest.mark.parametrize(
    ("dtype", "options", "reason"),
    [
        ("float32", {}, "computes in float32 already"),
        ("float16", {"verify_precision": -1}, "verify_precision is -1"),
        ("float16", {"mode": "signed"}, "--verify-precision cannot be used with --mode signed"),
    ],
)
def test_verification_of_unsupported_cases_is_refused(
    dtype: str, options: dict[str, Any], reason: str, tiny_llm_folder: Path, samples: list[Sample]
) -> None:
    checkpoint = lsm_probe.load(tiny_llm_folder, device="cpu", dtype=dtype)
    with pytest.raises(InputError, match=reason):
        lsm_probe.importance(checkpoint, samples[:2], **{"verify_precision": 2, **options})


def test_too_little_memory_is_reported_in_one_line_before_the_run(
    half: Checkpoint, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, cast = weights(half), torch.Tensor.float
    calls = iter(range(100))

    def full(self: torch.Tensor) -> torch.Tensor:
        if next(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cast(self)

    monkeypatch.setattr(torch.Tensor, "float", full)
    monkeypatch.setattr(measurement_run, "prepare", lambda *_: pytest.fail("the work began"))
    with pytest.raises(InputError, match=r"does not fit into memory in float32, which --verify-precision needs"):
        lsm_probe.attention(half, samples[:2], verify_precision=1)
    monkeypatch.undo()
    assert same(before, weights(half))


def test_the_command_prints_and_stores_the_drift_and_can_be_resumed(
    lsm_probe_command: Callable[..., tuple[int | str, str, str]],
    tiny_llm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"id": f"s{i}", "instruction": "Repeat.", "text": f"word {i} of the town"} for i in range(3)]
    manifest, out = tmp_path / "texts.jsonl", tmp_path / "out"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--dtype", "float16", "--max-new-tokens", 3)
    line = (*line, "--batch-size", 1, "--verify-precision", 2, "--out", out, "--resume")
    in_float32, entered = measurement_run.in_float32, []

    @contextmanager
    def stops(*arguments: Any) -> Iterator[None]:
        entered.append(arguments)
        with in_float32(*arguments):
            yield
            if len(entered) == 2:  # the samples were measured in float32, and the run ends before it is stored
                raise InputError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(measurement_run, "in_float32", stops)
        assert lsm_probe_command(*line)[0] == 2
    prepared, prepare = [], measurement_run.prepare
    monkeypatch.setattr(measurement_run, "prepare", lambda *a, **k: prepared.append(a) or prepare(*a, **k))
    code, stdout, stderr = lsm_probe_command(*line)
    assert code == 0, stderr
    assert not prepared  # all batches of both precisions were there
    assert f"{tiny_llm_folder}: 5/5" in stderr  # three samples, two of them twice
    note = "computed in float16; compared with float32 on 2 samples; eta differs by up to"
    assert note in " ".join(stdout.split())
    assert f"C{note[1:]}" in report_page(read_results([out]))
