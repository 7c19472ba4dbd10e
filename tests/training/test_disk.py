"""A disk that fills up while a checkpoint is written."""

import shutil
import subprocess

import pytest
import safetensors.torch
from safetensors import SafetensorError

from lsm_probe.training.run import train


def bytes_below(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(size)` mounts a file system of this size in bytes, or resizes it; returns its folder."""
    folder = tmp_path / "disk"

    def mounted(size: int):
        remount = "remount," if folder.exists() else ""
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"{remount}size={size}", "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


# Space for this number of checkpoints: the next fills the disk while it writes its weights (safetensors) or
# its optimizer state (torch), or it is the third, before the first is removed.
@pytest.mark.parametrize("checkpoints", [1.15, 1.7, 2.6])
def test_a_full_disk_ends_the_run_and_leaves_a_complete_checkpoint(
    small_disk, train_command, uninterrupted, training_config, model_sha256, checkpoints
) -> None:
    size = bytes_below(uninterrupted() / "checkpoint-8")
    out = small_disk(round(checkpoints * size)) / "out"
    code, lines = train_command("--out", out)
    assert (code, len(lines)) == (1, 1), lines
    assert "disk is full" in lines[0]
    assert "--resume" in lines[0]
    left = sorted(out.glob("checkpoint-*"))
    assert left
    assert all((path / "checksums.json").exists() for path in left)
    small_disk(20 * size)
    train(training_config(), out, resume=True)
    assert model_sha256(out) == model_sha256(uninterrupted())


def test_a_full_disk_reported_by_safetensors_is_recognised(train_command, tmp_path, monkeypatch) -> None:
    save = safetensors.torch.save_file
    saved = []

    def full(tensors, filename, *args, **kwargs):
        saved.append(filename)
        if len(saved) == 2:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        return save(tensors, filename, *args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    code, lines = train_command("--out", tmp_path / "out")
    assert (code, len(lines)) == (1, 1), lines
    assert "disk is full" in lines[0]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_other_errors_are_raised_unchanged(training_config, tmp_path, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a file of ours is broken")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", broken)
    with pytest.raises(RuntimeError, match="of ours is broken"):
        train(training_config(), tmp_path / "out")
