"""Stopped and resumed runs: bit-identical weights, and no setting changes silently."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file

from lsm_probe.errors import InputError, WorkFailed
from lsm_probe.folders import alone_in
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
from lsm_probe.training import stage
from lsm_probe.training.run import train
from lsm_probe.training.trainer import LsmTrainer

LORA = ("strategy=lora", "lora.dropout=0.1")
PASSES_OF_2 = "machine.per_device_batch_size=2"
WITHOUT_DROPOUT = "model.connector.dropout=0.0"  # its random numbers depend on the passes
UNEVEN = "limit=18"  # the last step of an epoch is filled up


@pytest.mark.parametrize(
    ("overrides", "workers", "save_steps"),
    [
        # Saved every 3 steps, it resumes in the second epoch; every 5, between two epochs.
        ((UNEVEN,), 0, 3),
        ((UNEVEN,), 2, 5),
        ((UNEVEN, PASSES_OF_2), 0, 5),
        ((UNEVEN, PASSES_OF_2), 2, 3),
        ((UNEVEN, *LORA), 0, 5),
        ((UNEVEN, *LORA, PASSES_OF_2), 2, 3),
    ],
)
def test_a_resumed_run_ends_with_the_same_weights(
    uninterrupted, stopped_run, training_config, model_sha256, overrides, workers, save_steps
) -> None:
    expected = uninterrupted(*overrides)
    changes = (*overrides, f"machine.workers={workers}", f"machine.save_steps={save_steps}")
    out = stopped_run(8, *changes)
    train(training_config(*changes), out, resume=True)
    assert model_sha256(out) == model_sha256(expected)
    assert losses(out) == losses(expected)


def losses(out) -> list[float]:
    return [entry["loss"] for entry in json.loads((out / "history.json").read_text()) if "loss" in entry]


def test_a_run_stopped_before_its_first_checkpoint_starts_again(
    uninterrupted, stopped_run, training_config, model_sha256
) -> None:
    out = stopped_run(1)
    assert not list(out.glob("checkpoint-*"))
    train(training_config(), out, resume=True)
    assert model_sha256(out) == model_sha256(uninterrupted())


def test_a_run_of_two_stages_is_resumed_in_the_second(training_config, stop_at, model_sha256, tmp_path) -> None:
    stages = "stages=[{name: connector, strategy: frozen_llm, max_steps: 3}, {name: all, max_steps: 6}]"
    config = training_config(stages, "limit=12")  # 3 steps an epoch
    train(config, tmp_path / "whole")
    with pytest.raises(BaseException, match="step 5"):
        train(config, tmp_path / "stopped", on_progress=stop_at(5))
    seen: list[str] = []
    report = train(config, tmp_path / "stopped", resume=True, on_progress=lambda name, *_: seen.append(name))
    assert set(seen) == {"all"}
    assert [stage["steps"] for stage in report["stages"]] == [3, 6]
    assert model_sha256(tmp_path / "stopped") == model_sha256(tmp_path / "whole")


def test_machine_settings_may_change_when_a_run_is_resumed(
    stopped_run, training_config, uninterrupted, model_sha256
) -> None:
    out = stopped_run(3)
    given = ("machine.workers=1", "machine.save_steps=5", "machine.log_steps=4")
    seen = []
    train(
        training_config(*given),
        out,
        resume=True,
        on_progress=lambda *_: seen.append({path.name for path in out.glob("checkpoint-*")}),
    )
    assert set.union(*seen) | {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{i}" for i in (2, 5, 9)}
    assert model_sha256(out) == model_sha256(uninterrupted())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("seed=1", "seed"),
        ("learning_rate=2e-3", "learning_rate"),
        ("strategy=lora", "strategy"),
        ("batch_size=8", "batch_size"),
    ],
)
def test_changed_settings_are_refused_when_a_run_is_resumed(finished_run, train_command, change, named) -> None:
    code, lines = train_command(change, "--out", finished_run(), "--resume")
    assert code == 2
    assert len(lines) == 1
    assert "started with other settings" in lines[0]
    assert named in lines[0]


def test_a_folder_with_a_run_is_refused_without_resume(finished_run, train_command, model_sha256) -> None:
    out = finished_run()
    before = model_sha256(out)
    code, lines = train_command("--out", out)
    assert (code, len(lines)) == (2, 1)
    assert "--resume" in lines[0]
    assert model_sha256(out) == before


def test_a_second_process_is_refused(train_command, tmp_path) -> None:
    with alone_in(tmp_path / "out"):
        code, lines = train_command("--out", tmp_path / "out")
    assert (code, len(lines)) == (2, 1)
    assert "another process is writing" in lines[0]
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def out_of_memory_above(monkeypatch, samples: int, *, from_call: int = 0) -> None:
    """Makes the model run out of memory on batches of more than this number of samples."""
    forward = LsmForConditionalGeneration.forward
    calls = []

    def limited(self, input_ids=None, **kwargs):
        calls.append(len(input_ids))
        if len(input_ids) > samples and len(calls) > from_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(LsmForConditionalGeneration, "forward", limited)


def test_out_of_memory_halves_the_pass_and_keeps_the_samples_of_a_step(
    uninterrupted, training_config, model_sha256, tmp_path, monkeypatch
) -> None:
    expected = uninterrupted(PASSES_OF_2)
    out_of_memory_above(monkeypatch, 2)
    with pytest.warns(UserWarning, match="continuing with 2; a step keeps its 4") as warned:
        report = train(training_config(), tmp_path / "out")
    assert len([w for w in warned if "memory ran out" in str(w.message)]) == 1
    assert report["stages"][0]["per_device_batch_size"] == 2
    assert report["stages"][0]["gradient_accumulation"] == 2
    assert model_sha256(tmp_path / "out") == model_sha256(expected)
    assert losses(tmp_path / "out") == losses(expected)


def test_out_of_memory_does_not_repeat_finished_steps(uninterrupted, training_config, tmp_path, monkeypatch) -> None:
    expected = uninterrupted(WITHOUT_DROPOUT)
    out_of_memory_above(monkeypatch, 2, from_call=5)
    steps = []
    with pytest.warns(UserWarning, match="continuing with 2") as warned:
        train(
            training_config(WITHOUT_DROPOUT),
            tmp_path / "out",
            on_progress=lambda _, step, __, note: steps.append(step) if note.endswith("tok/s") else None,
        )
    assert len([w for w in warned if "memory ran out" in str(w.message)]) == 1
    assert steps == [1, 2, 3, 4, 5, *range(5, 10)]
    assert losses(tmp_path / "out") == pytest.approx(losses(expected), abs=1e-5)


def test_out_of_memory_frees_the_model_before_the_next_attempt(training_config, probing, tmp_path, monkeypatch) -> None:
    out_of_memory_above(monkeypatch, 2)
    start, models = stage.start_model, []

    def note(*given):
        assert not any(model() for model in models)
        checkpoint = start(*given)
        models.append(weakref.ref(checkpoint.model))
        return checkpoint

    monkeypatch.setattr(stage, "start_model", note)
    with pytest.warns(UserWarning, match="continuing with 2"):
        train(training_config("max_steps=1", *probing), tmp_path / "out")
    assert len(models) == 2


def test_out_of_memory_with_one_sample_is_an_error(training_config, tmp_path, monkeypatch) -> None:
    out_of_memory_above(monkeypatch, 0)
    with (
        pytest.warns(UserWarning, match="continuing with 1"),
        pytest.raises(WorkFailed, match="gradient_checkpointing"),
    ):
        train(training_config(PASSES_OF_2), tmp_path / "out")


def test_out_of_memory_advice_does_not_repeat_active_settings(training_config, tmp_path, monkeypatch) -> None:
    out_of_memory_above(monkeypatch, 0)
    given = (PASSES_OF_2, "machine.per_device_batch_size=1", "machine.gradient_checkpointing=true")
    with pytest.raises(WorkFailed, match=r"1 sample in a pass: start a new run with strategy=lora \(--dry-run"):
        train(training_config(*given), tmp_path / "cpu")
    monkeypatch.setattr(stage, "SHARDING_DEVICES", {"cpu"})
    with pytest.raises(WorkFailed, match=r"in a pass: start a new run with more GPUs .* or strategy=lora"):
        train(training_config(*given), tmp_path / "gpu")
    with pytest.raises(WorkFailed, match=r"in a pass: start a new run with more GPUs [^=]*$"):
        train(training_config(*given, "strategy=lora"), tmp_path / "lora")


def test_out_of_memory_for_the_weights_is_not_retried_with_smaller_passes(
    training_config, tmp_path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LsmForConditionalGeneration, "to", full)
    monkeypatch.setattr(stage, "SHARDING_DEVICES", {"cpu"})
    with pytest.raises(WorkFailed, match=r"0\.0 GiB of weights do not fit on cpu: start a new run with more GPUs"):
        train(training_config(), tmp_path / "out")


def test_a_config_without_training_data_is_refused(training_config, tmp_path) -> None:
    with pytest.raises(InputError, match="no training data"):
        train(training_config("train=[]"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_changed_samples_are_refused_when_a_run_is_resumed(training_folder, training_config, stop_at, tmp_path) -> None:
    manifest = tmp_path / "train.jsonl"
    text = (training_folder / "train.jsonl").read_text().replace('"audio": "', f'"audio": "{training_folder}/')
    manifest.write_text(text)
    config = training_config(f"train={manifest}")
    with pytest.raises(BaseException, match="step 3"):
        train(config, tmp_path / "out", on_progress=stop_at(3))
    manifest.write_text(text.replace("old town", "new town", 1))
    with pytest.raises(InputError, match="was started with other samples"):
        train(config, tmp_path / "out", resume=True)
    manifest.write_text(text)
    train(config, tmp_path / "out", resume=True)


def test_a_step_does_not_depend_on_its_division_into_passes(training_config, tmp_path, monkeypatch) -> None:
    # AdamW would make full steps from gradients that are only rounding errors.
    monkeypatch.setattr(LsmTrainer, "get_optimizer_cls_and_kwargs", lambda *_: (torch.optim.SGD, {"lr": 0.1}))
    for samples in (8, 4, 1):
        given = (WITHOUT_DROPOUT, "batch_size=8", "max_steps=4", f"machine.per_device_batch_size={samples}")
        train(training_config(*given, "learning_rate=0.1"), tmp_path / str(samples))
    whole = load_file(tmp_path / "8" / "model" / "model.safetensors")
    for samples in ("4", "1"):
        assert losses(tmp_path / samples) == pytest.approx(losses(tmp_path / "8"), abs=1e-6)
        divided = load_file(tmp_path / samples / "model" / "model.safetensors")
        assert max(float((divided[name] - whole[name]).abs().max()) for name in whole) <= 1e-6
