"""Files that training frameworks save instead of a model: read, or refused with a conversion command."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

import lsm_probe
from lsm_probe.errors import InputError


@pytest.fixture
def folder(tiny_llm_folder: Path, tmp_path: Path) -> Path:
    """A text LLM's folder; tests save its weights in another form."""
    return shutil.copytree(tiny_llm_folder, tmp_path / "trained model", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture
def weights(tiny_llm_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_llm_folder / "model.safetensors")


@pytest.fixture
def expected(tiny_llm_folder: Path) -> torch.Tensor:
    return logits(tiny_llm_folder)


def logits(folder: Path) -> torch.Tensor:
    found: torch.Tensor = lsm_probe.load(folder, device="cpu").model(input_ids=torch.tensor([[5, 9, 200, 31]])).logits
    return found


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        lsm_probe.load(folder)
    return str(error.value)


def run(command: str, out: Path) -> None:
    """Runs a command from an error message with this Python; its output goes to the folder `out`."""
    parts = [part.replace("OUT", str(out), 1) if part.startswith("OUT") else part for part in shlex.split(command)]
    programs = {"python": [sys.executable], "accelerate": [str(Path(sys.executable).parent / "accelerate")]}
    done = subprocess.run([*programs[parts[0]], *parts[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def converter(line: str) -> str:
    """The command in an error message about one file."""
    found = re.search(r"`(python -c .*)` converts it", line)
    assert found is not None, line
    return found[1]


def as_lightning(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    state = {f"model.{name}": tensor for name, tensor in weights.items()}
    state["model.lm_head.weight"] = weights["model.embed_tokens.weight"]
    return {"pytorch-lightning_version": "2.5.0", "epoch": 1, "state_dict": state, "optimizer_states": []}


class TestOneFile:
    @pytest.mark.parametrize(
        ("name", "made"),
        [
            ("last.ckpt", as_lightning),
            ("weights.pt", dict),
            ("weights.pth", lambda weights: {"model": weights, "step": 5}),
            ("it's.pt", lambda weights: {"module": {f"module.{name}": tensor for name, tensor in weights.items()}}),
            ("model.bin", lambda weights: {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}),
        ],
        ids=["Lightning", "plain", "nested", "DeepSpeed without ZeRO", "compiled"],
    )
    def test_the_suggested_python_command_converts_the_file(
        self, folder: Path, weights: dict[str, torch.Tensor], expected: torch.Tensor, name: str, made: Any
    ) -> None:
        torch.save(made(weights), folder / name)
        line = refusal(folder)
        assert f"has no weights that transformers reads, but {name}: `python -c" in line
        run(converter(line), folder)
        (folder / name).unlink()
        assert torch.equal(logits(folder), expected)

    def test_a_file_with_more_than_tensors_is_refused(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        torch.save({"state_dict": weights, "hyper_parameters": Path("a")}, folder / "last.ckpt")
        assert "last.ckpt, which is damaged or holds more than tensors" in refusal(folder)

    def test_safetensors_under_another_name_should_be_renamed(
        self, folder: Path, weights: dict[str, torch.Tensor], expected: torch.Tensor
    ) -> None:
        save_file(weights, folder / "weights.safetensors", metadata={"format": "pt"})
        assert "rename it to model.safetensors" in refusal(folder)
        (folder / "weights.safetensors").rename(folder / "model.safetensors")
        assert torch.equal(logits(folder), expected)

    def test_several_files_are_refused(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        for name in ("a.pt", "b.pt"):
            torch.save(weights, folder / name)
        assert "a.pt, b.pt: keep the file that holds the whole model" in refusal(folder)


class TestPrefixes:
    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
    @pytest.mark.parametrize("kind", ["safetensors", "bin", "shards"])
    def test_a_prefix_of_all_names_is_removed(
        self, folder: Path, weights: dict[str, torch.Tensor], expected: torch.Tensor, prefix: str, kind: str
    ) -> None:
        weights = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
        if kind == "safetensors":
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        elif kind == "bin":
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            weight_map = {name: f"{i % 2}.bin" for i, name in enumerate(weights)}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
            for shard in ("0.bin", "1.bin"):
                torch.save({name: weights[name] for name in weights if weight_map[name] == shard}, folder / shard)
        with pytest.warns(UserWarning, match=f"{prefix} is removed from the names of all tensors"):
            assert torch.equal(logits(folder), expected)

    def test_a_prefix_of_some_names_is_not_removed(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        name = "model.layers.1.self_attn.q_proj.weight"
        weights[f"module.{name}"] = weights.pop(name)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert f"lack 1 tensor ({name}) and hold 1 tensor (module.{name})" in refusal(folder)

    def test_a_prefix_is_removed_for_an_lsm(self, tiny_lsm_folder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(tiny_lsm_folder, tmp_path / "lsm")
        weights = load_file(folder / "model.safetensors")
        save_file({f"module.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
        with pytest.warns(UserWarning, match=r"module\. is removed"):
            found = lsm_probe.load(folder).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


class TestParts:
    @pytest.mark.parametrize("name", ["pytorch_model_fsdp_0", "checkpoint-5"])
    @pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
    def test_the_suggested_command_converts_torch_distributed_checkpoints(
        self, folder: Path, tmp_path: Path, weights: dict[str, torch.Tensor], expected: torch.Tensor, name: str
    ) -> None:
        saved = {"model": weights}
        if name == "checkpoint-5":
            saved["optimizer"] = {"momentum": torch.ones(4)}
        dcp.save(saved, checkpoint_id=str(folder / name), no_dist=True)
        line = refusal(folder)
        assert "holds a distributed checkpoint (FSDP) in parts" in line
        command = re.search(r"`(.*?)` joins them", line)
        assert command is not None
        assert command[1].startswith("accelerate merge-weights" if "fsdp" in name else "python -m torch.distributed")
        out = shutil.copytree(folder, tmp_path / "OUT", ignore=shutil.ignore_patterns(name))
        run(command[1], out)
        if name == "checkpoint-5":  # the file written by torch's converter needs the Python command as well
            run(converter(refusal(out)), out)
            (out / "weights.pt").unlink()
        assert torch.equal(logits(out), expected)

    @pytest.mark.parametrize("given", ["checkpoint", "global_step5"])
    def test_deepspeed_checkpoints_are_refused_with_a_conversion_command(self, folder: Path, given: str) -> None:
        parts = folder / "global_step5"
        parts.mkdir()
        (folder / "latest").write_text("global_step5")
        for rank in range(2):
            torch.save({"optimizer_state_dict": {}}, parts / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            torch.save({"module": {}}, parts / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        (folder / "zero_to_fp32.py").write_text("raise SystemExit('code of the checkpoint ran')")
        line = refusal(folder if given == "checkpoint" else parts)
        place = shlex.quote(str(folder))
        assert "holds a checkpoint of DeepSpeed (ZeRO) in parts" in line
        assert f"`python -m deepspeed.utils.zero_to_fp32 {place} OUT` joins them" in line
        assert "copy config.json" in line
