"""Incomplete, damaged or forged checkpoints: a run resumes from a complete one, and executes no code from any."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsm_probe.checksums import CHECKSUMS, write_checksums
from lsm_probe.training.run import train

LORA = ("strategy=lora", "lora.dropout=0.1")


def in_order_of_writing(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.iterdir(), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def cut_run(finished_run):
    """A run that reached step 9 but has no final model yet: checkpoints 8 and 9."""
    out = finished_run()
    shutil.rmtree(out / "model")
    return out


def test_a_run_killed_at_any_point_of_a_save_can_be_resumed(cut_run, training_config, uninterrupted, model_sha256):
    newest = cut_run / "checkpoint-9"
    files = in_order_of_writing(newest)
    assert files[-1].name == CHECKSUMS
    steps: list[int] = []
    for number in range(1, len(files), 2):
        out = cut_run.with_name(f"{number} files were written")
        shutil.copytree(cut_run, out)
        for path in files[number:]:
            (out / newest.name / path.name).unlink()
        train(training_config(), out, resume=True, on_progress=lambda _, step, *__: steps.append(step))
        assert model_sha256(out) == model_sha256(uninterrupted()), out.name
        assert (out / newest.name / CHECKSUMS).exists()
    assert set(steps) == {8, 9}  # the checkpoint from which it resumes, and its only step


def test_files_of_a_killed_save_are_removed_on_resume(cut_run, training_config):
    (cut_run / "checkpoint-9" / CHECKSUMS).unlink()
    (cut_run / "checkpoint-11").mkdir()
    seen = []
    train(
        training_config(),
        cut_run,
        resume=True,
        on_progress=lambda *_: seen.extend(path.name for path in cut_run.glob("checkpoint-*")),
    )
    assert set(seen) == {"checkpoint-8"}


def test_the_newest_checkpoints_are_kept_regardless_of_file_times(stopped_run, training_config):
    out = stopped_run(7)
    for n, checkpoint in enumerate(sorted(out.glob("checkpoint-*"))):
        os.utime(checkpoint, (4e9 + 100 * n, 4e9 + 100 * n))  # the clock was set back afterwards
    train(training_config(), out, resume=True)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-8", "checkpoint-9"]
    assert (out / "checkpoint-9" / "model.safetensors").exists()


def test_a_damaged_file_is_named(cut_run, train_command, uninterrupted, model_sha256):
    for path in sorted((cut_run / "checkpoint-9").iterdir()):
        before = path.read_bytes()
        middle = len(before) // 2
        for damaged in (before[:middle], before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :]):
            path.write_bytes(damaged)
            code, lines = train_command("--out", cut_run, "--resume")
            assert (code, len(lines)) == (2, 1), lines
            assert "checkpoint-9/" in lines[0]
            assert lines[0].endswith(
                f"delete {cut_run}/checkpoint-9, and --resume continues from the checkpoint before it"
            )
            assert path.name in lines[0] or path.name == CHECKSUMS
        path.write_bytes(before)
    (cut_run / "checkpoint-9" / "optimizer.pt").unlink()
    code, lines = train_command("--out", cut_run, "--resume")
    assert (code, len(lines)) == (2, 1)
    assert "optimizer.pt is missing" in lines[0]
    assert not (cut_run / "model").exists()
    shutil.rmtree(cut_run / "checkpoint-9")  # as the message says
    assert train_command("--out", cut_run, "--resume")[0] == 0
    assert model_sha256(cut_run) == model_sha256(uninterrupted())


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def reseal(checkpoint: Path) -> None:
    (checkpoint / CHECKSUMS).unlink()
    write_checksums(checkpoint)


@pytest.mark.parametrize(
    ("name", "instead_of", "overrides"),
    [
        ("optimizer.pt", None, ()),
        ("scheduler.pt", None, ()),
        ("rng_state.pth", None, ()),
        ("model.safetensors", None, ()),
        ("pytorch_model.bin", "model.safetensors", ()),
        ("adapter_model.bin", "adapter_model.safetensors", LORA),
        ("training_args.bin", None, ()),
    ],
)
def test_a_pickle_in_a_checkpoint_is_never_executed(finished_run, train_command, tmp_path, name, instead_of, overrides):
    for step, as_torch_saves in ((8, True), (9, False), (9, True)):
        out = finished_run(*overrides)
        shutil.rmtree(out / "model")
        shutil.rmtree(out / ("checkpoint-9" if step == 8 else "checkpoint-8"))
        checkpoint, marker = out / f"checkpoint-{step}", tmp_path / "it-ran"
        if instead_of:
            (checkpoint / instead_of).unlink()
        if as_torch_saves:
            torch.save({"state": Bomb(marker)}, checkpoint / name)
        else:
            (checkpoint / name).write_bytes(pickle.dumps(Bomb(marker)))
        reseal(checkpoint)
        code, lines = train_command(*overrides, "--out", out, "--resume")
        assert not marker.exists()
        assert (code, len(lines)) == (2, 1), lines
        assert f"checkpoint-{step}/{name} was not written by a training run" in lines[0]
        shutil.rmtree(out)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"global_step": "many"}', '{"global_step": 7}'])
def test_an_invalid_trainer_state_is_refused(cut_run, train_command, text):
    (cut_run / "checkpoint-9" / "trainer_state.json").write_text(text)
    reseal(cut_run / "checkpoint-9")
    code, lines = train_command("--out", cut_run, "--resume")
    assert (code, len(lines)) == (2, 1), lines
    assert "checkpoint-9" in lines[0]


def test_checkpoints_contain_no_unused_pickle(uninterrupted):
    names = {path.name for path in (uninterrupted() / "checkpoint-9").iterdir()}
    assert "training_args.bin" not in names
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names


def test_lora_checkpoints_contain_trained_weights_only(uninterrupted):
    saved = load_file(uninterrupted(*LORA) / "checkpoint-9" / "adapter_model.safetensors")
    assert all("lora" in name or "multi_modal_projector" in name for name in saved)
    assert json.loads((uninterrupted(*LORA) / "checkpoint-9" / CHECKSUMS).read_text())["files"]
