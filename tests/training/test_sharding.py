"""The LSM sharded over two processes (FSDP2 on CPU; the Trainer offers it on GPUs only), saved and loaded again."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

SCRIPT = Path(__file__).with_name("sharded.py")


@pytest.fixture(scope="session")
def sharded_run(tiny_lsm_folder: Path, training_folder: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sharded")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    arguments = [SCRIPT, tiny_lsm_folder, training_folder / "train.jsonl", out]
    ended = subprocess.run([*torchrun, *map(str, arguments)], capture_output=True, text=True, timeout=200)
    assert not ended.returncode, ended.stderr
    return out


def test_two_processes_resume_from_a_checkpoint_of_two(sharded_run) -> None:
    report = json.loads((sharded_run / "report.json").read_text())
    assert report["largest_difference"] == 0
    assert report["groups"] == 4  # connector and LLM, with and without weight decay
    assert report["share"] == pytest.approx(0.5, abs=0.02)


def test_one_process_resumes_from_a_checkpoint_of_two(sharded_run, tiny_lsm_folder, training_folder) -> None:
    spec = importlib.util.spec_from_file_location("sharded", SCRIPT)
    sharded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sharded)
    before, _ = sharded.prepared(tiny_lsm_folder, sharded=False)
    model, optimizer = sharded.prepared(tiny_lsm_folder, sharded=False)
    weights, state = get_state_dict(model, optimizer)
    loaded = {"model": weights, "optimizer": state}
    dcp.load(loaded, checkpoint_id=sharded_run / "checkpoint", no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    inputs = sharded.batch(tiny_lsm_folder, training_folder / "train.jsonl", 1)
    sharded.step(model, optimizer, inputs, tokens=sharded.tokens_of(inputs), parts=1)
    expected = load_file(sharded_run / "on.safetensors")
    changed = set()
    for (name, tensor), first in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert (tensor - expected[name]).abs().max() <= 1e-6, name
        changed |= set() if tensor.equal(first) else {name.split(".")[0]}
    assert changed == {"multi_modal_projector", "language_model"}  # the encoder is frozen
