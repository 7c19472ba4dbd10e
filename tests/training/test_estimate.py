"""The estimate: parameters, steps, samples and memory, compared with real models and measurements; and its output."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.building import BUILTIN_LSMS
from lsm_probe.training.batches import accumulation, optimizer_steps, warmup_steps
from lsm_probe.training.config import Machine, Stage, TrainConfig, read_config
from lsm_probe.training.estimate import GIB, estimate
from lsm_probe.training.table import show_estimate


@pytest.fixture
def config(tiny_lsm_folder: Path):
    """`config(**settings)`: a run that starts from the tiny LSM, in float32."""

    def made(model: dict[str, Any] | None = None, **settings: Any) -> TrainConfig:
        model = model or {"start": str(tiny_lsm_folder)}
        return TrainConfig.model_validate({"model": model, "precision": "float32", **settings})

    return made


def parts(config: TrainConfig) -> dict[str, tuple[int, int]]:
    return {part.name: (part.parameters, part.trainable) for part in estimate(config).stages[0].parts}


def memory(config: TrainConfig) -> dict[str, int]:
    return estimate(config).stages[0].memory


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_equal_those_of_the_real_model(config, tiny_lsm) -> None:
    model = tiny_lsm.model
    found = parts(config())
    embeddings = model.get_input_embeddings().weight.numel()  # the head is tied to them
    assert found == {
        "encoder": (size(model.audio_tower), 0),
        "connector": (size(model.multi_modal_projector),) * 2,
        "LLM embeddings": (embeddings,) * 2,
        "LLM layers": (size(model.language_model) - embeddings,) * 2,
    }


def test_a_frozen_llm_leaves_only_the_connector_trainable(config, tiny_lsm) -> None:
    trained = {name: trained for name, (_, trained) in parts(config(strategy="frozen_llm")).items() if trained}
    assert trained == {"connector": size(tiny_lsm.model.multi_modal_projector)}


@pytest.mark.parametrize("rank", [1, 4])
def test_adapters_are_counted_as_peft_makes_them(config, tiny_lsm, rank: int) -> None:
    found = parts(config(strategy="lora", lora={"rank": rank}))
    llm = tiny_lsm.model.language_model
    by_hand = sum(
        rank * (module.in_features + module.out_features)
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    )
    adapted = peft.get_peft_model(llm, peft.LoraConfig(r=rank, target_modules="all-linear"))
    made = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert found["LoRA"] == (by_hand, by_hand) == (made, made)
    assert found["LLM layers"][1] == found["LLM embeddings"][1] == found["encoder"][1] == 0
    assert found["connector"] == (size(tiny_lsm.model.multi_modal_projector),) * 2


def test_a_run_from_parts_has_the_same_counts_as_one_from_their_model(
    config, tiny_encoder_folder: Path, tiny_llm_folder: Path
) -> None:
    connector = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    model = {"encoder": str(tiny_encoder_folder), "llm": str(tiny_llm_folder), "connector": connector}
    assert parts(config(model)) == parts(config())


@pytest.mark.parametrize("name", BUILTIN_LSMS)
def test_training_can_start_from_a_built_in_lsm(config, name: str) -> None:
    found, model = parts(config({"start": name})), lsm_probe.load(name, device="cpu").model
    assert found["connector"][0] == size(model.multi_modal_projector)
    assert sum(count for count, _ in found.values()) == size(model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoder": "LLM"}, "is a 'llama' model: give a Whisper of any size"),
        ({"llm": "ENCODER"}, "is a 'whisper' model: give a causal text LLM"),
        ({"llm": "LSM"}, "is a 'lsm' model: give a causal text LLM"),
        ({"start": "LLM"}, "is a 'llama' model, no LSM of this package"),
        ({"connector": {"connector": "rnn"}}, "connector 'rnn' is unknown"),
        ({"decoder_states": 9999}, "decoder_states 9999"),
        ({"llm": "EMPTY"}, "its configuration cannot be read"),
    ],
)
def test_invalid_models_are_refused_in_one_line(
    change, says, tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_lsm_folder: Path, tmp_path: Path
) -> None:
    folders = {"LLM": tiny_llm_folder, "ENCODER": tiny_encoder_folder, "LSM": tiny_lsm_folder, "EMPTY": tmp_path}
    change = {key: str(folders.get(value, value)) if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(InputError) as caught:
        estimate(TrainConfig.model_validate({"model": change}))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "samples", "steps"),
    [
        ({"batch_size": 512, "epochs": 2}, 1_662_023, 6494),
        ({"batch_size": 8, "epochs": 1}, 8, 1),
        ({"batch_size": 8, "epochs": 1}, 9, 2),
        ({"batch_size": 8, "epochs": 2.5}, 9, 5),
        ({"batch_size": 8, "epochs": 0.3}, 80, 3),
        ({"batch_size": 8, "epochs": 0.25}, 80, 3),  # 2.5 steps are 3
        ({"batch_size": 8, "epochs": 9, "max_steps": 7}, 80, 7),
    ],
)
def test_the_number_of_steps_equals_the_trainers(
    settings: dict[str, Any], samples: int, steps: int, tmp_path: Path
) -> None:
    from transformers import Trainer, TrainingArguments

    stage = Stage(**settings)
    assert optimizer_steps(stage, samples) == steps
    passes = -(-samples // 2)  # a loader of 2 samples a pass
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        gradient_accumulation_steps=stage.batch_size // 2,
        use_cpu=True,
    )
    trainer = Trainer(model=nn.Linear(1, 1), args=arguments)
    loader = torch.utils.data.DataLoader([0] * samples, batch_size=2)  # type: ignore[arg-type]
    assert len(loader) == passes
    assert trainer.set_initial_training_values(arguments, loader)[-1] == steps


@pytest.mark.parametrize(("warmup", "rises"), [(0, 0), (100, 100), (0.03, 2), (0.5, 25)])
def test_the_number_of_warmup_steps_equals_the_trainers(warmup: float, rises: int, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    assert warmup_steps(Stage(warmup=warmup), 50) == rises
    assert TrainingArguments(str(tmp_path), warmup_steps=warmup, use_cpu=True).get_warmup_steps(50) == rises


def test_gradient_accumulation_divides_the_batch() -> None:
    assert accumulation(Stage(batch_size=512), Machine(per_device_batch_size=4), 8) == 16
    assert accumulation(Stage(batch_size=8), Machine(per_device_batch_size=8), 1) == 1


@pytest.mark.parametrize(
    ("batch", "in_a_pass", "world", "remedy"),
    [
        (8, 8, 2, "machine.per_device_batch_size=4"),
        (12, 5, 1, "machine.per_device_batch_size=4"),
        (14, 4, 2, "machine.per_device_batch_size=1"),
        (9, 8, 2, "batch_size=16"),
        (2, 1, 4, "batch_size=4"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused_with_a_valid_remedy(
    batch: int, in_a_pass: int, world: int, remedy: str
) -> None:
    stage, machine = Stage(batch_size=batch), Machine(per_device_batch_size=in_a_pass)
    with pytest.raises(InputError) as caught:
        accumulation(stage, machine, world)
    message = str(caught.value)
    assert (
        f"batch of {batch} cannot be made of {in_a_pass} samples on each of {world} processes; set {remedy}" in message
    )
    key, value = remedy.removeprefix("machine.").split("=")
    stage, machine = (
        each.model_copy(update={key: int(value)}) if key in type(each).model_fields else each
        for each in (stage, machine)
    )
    assert accumulation(stage, machine, world) >= 1


@pytest.fixture
def manifests(tmp_path: Path) -> list[Path]:
    """Two manifests: 5 samples of task a, 3 of task b, one without a task; a byte order mark and blank lines."""
    tasks = [["a", "a", "b", None], ["a", "b", "a", "b", "a"]]
    found = []
    for i, file in enumerate(tasks):
        lines = [json.dumps({"id": str(n), "task": task} if task else {"id": str(n)}) for n, task in enumerate(file)]
        path = tmp_path / f"{i}.jsonl"
        path.write_text("\ufeff" + "\n\n".join(lines) + "\n\n", encoding="utf-8")
        found.append(path)
    return found


@pytest.mark.parametrize(
    ("settings", "samples"),
    [({}, 9), ({"tasks": ["a"]}, 5), ({"tasks": ["a", "b"]}, 8), ({"limit": 4}, 8), ({"tasks": ["a"], "limit": 2}, 4)],
)
def test_samples_are_counted_if_the_manifests_exist(config, manifests, settings, samples: int) -> None:
    (stage,) = estimate(config(train=manifests, expected_samples=1000, **settings)).stages
    assert (stage.samples, stage.samples_from) == (samples, "counted")
    assert stage.steps == -(-samples // 8)


def test_expected_samples_is_used_if_manifests_are_missing(config, manifests) -> None:
    elsewhere = [manifests[0], Path("elsewhere.jsonl")]
    (stage,) = estimate(config(train=elsewhere, expected_samples=1000)).stages
    assert (stage.samples, stage.samples_from, stage.steps) == (1000, "expected_samples", 125)
    (stage,) = estimate(config(train=elsewhere, expected_samples=1000, limit=80)).stages
    assert stage.steps == 20
    (stage,) = estimate(config(train=elsewhere)).stages
    assert (stage.samples, stage.samples_from, stage.steps) == (None, "elsewhere.jsonl is not here", None)
    (stage,) = estimate(config(max_steps=6)).stages
    assert (stage.samples, stage.samples_from, stage.steps, stage.warmup_steps) == (None, "give train=...", 6, 100)


def test_a_line_that_is_not_json_is_named(config, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"task": "a"}\n["a"]\n{"task": \n')
    with pytest.raises(InputError, match=r"bad\.jsonl, line 3: is not JSON"):
        estimate(config(train=[path], tasks=["a"]))


def test_memory_on_one_device_in_float32(config) -> None:
    stage = estimate(config()).stages[0]
    assert stage.memory["weights"] == 4 * stage.parameters
    assert stage.memory["gradients"] == 4 * stage.trainable
    assert stage.memory["AdamW"] == 8 * stage.trainable
    assert set(stage.memory) == {"weights", "gradients", "AdamW", "activations", "logits"}
    frozen = memory(config(strategy="frozen_llm"))
    assert frozen["weights"] == stage.memory["weights"]
    assert frozen["AdamW"] < stage.memory["AdamW"]
    assert frozen["activations"] < stage.memory["activations"]


def test_memory_with_bf16_includes_the_bfloat16_copy(config) -> None:
    stage = estimate(config(precision="bf16")).stages[0]
    encoder = stage.parts[0].parameters
    assert stage.memory["bfloat16 copy"] == 2 * (stage.parameters - encoder)
    assert stage.memory["weights"] == 4 * stage.parameters


def test_fsdp_divides_memory_and_ddp_does_not(config) -> None:
    alone = memory(config(batch_size=32))
    fsdp = memory(config(batch_size=32, machine={"devices": 4}))
    ddp = memory(config(batch_size=32, machine={"devices": 4, "sharding": "ddp"}))
    for name in ("weights", "gradients", "AdamW"):
        assert fsdp[name] == alone[name] // 4
    assert ddp == alone | {"gradients": 2 * alone["gradients"]}
    assert memory(config(batch_size=32, machine={"devices": 4, "device": "cpu"})) == ddp
    assert fsdp["activations"] == alone["activations"]
    found = parts(config())
    layers = found["LLM layers"][0]
    gathered = 4 * (found["connector"][0] + found["LLM embeddings"][0] + 2 * layers // 3)  # two of its three layers
    assert fsdp["gathered"] == 2 * gathered
    frozen = memory(config(batch_size=32, machine={"devices": 4}, strategy="frozen_llm"))
    assert frozen["gathered"] == gathered


def test_half_the_samples_per_pass_halve_the_activation_memory(config) -> None:
    eight, four = memory(config()), memory(config(machine={"per_device_batch_size": 4}))
    assert four["activations"] * 2 == eight["activations"]
    assert four["logits"] * 2 == eight["logits"]
    assert memory(config(machine={"gradient_checkpointing": True}))["activations"] < eight["activations"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("strategy", ["full", "frozen_llm"])
def test_activation_memory_equals_what_autograd_saves(config, tiny_lsm, precision: str, strategy: str) -> None:
    made: Any = tiny_lsm.model.language_model
    llm = LlamaForCausalLM(made.config).train().requires_grad_(strategy == "full")
    batch, tokens = 8, 89 + 60 + 60
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tokens in tensor.shape or batch * tokens in tensor.shape:  # not weights, nor autocast's copies of them
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []  # or another tensor reuses the freed memory
    embeds = torch.randn(batch, tokens, made.config.hidden_size, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        llm.model(inputs_embeds=embeds, use_cache=False)
    estimated = memory(config(precision=precision, strategy=strategy))["activations"]
    assert estimated == pytest.approx(sum(kept.values()), rel=0.15)


def test_the_launch_command_repeats_the_arguments() -> None:
    arguments = ["self_powered", "train=[a.jsonl, b.jsonl]", "machine.devices=1"]
    alone = estimate(read_config("self_powered", arguments[1:]), arguments)
    assert alone.launch == "lsm-probe train self_powered 'train=[a.jsonl, b.jsonl]' machine.devices=1 --out DIR"
    several = estimate(read_config("self_powered"), ["self_powered", "--out", "runs/a"])
    assert several.launch == "torchrun --nproc-per-node 8 -m lsm_probe train self_powered --out runs/a"


def test_the_printed_estimate_fits_120_columns_and_names_every_part(capsys) -> None:
    show_estimate(estimate(read_config("llasm"), ["llasm"]), as_json=False)
    out = capsys.readouterr().out
    assert all(len(line) <= 120 for line in out.splitlines())
    for words in (
        "stage adapt: frozen_llm",
        "stage instruct: full",
        "LLM embeddings",
        "5,246,976",
        "100.0%",
        "samples: unknown (give train=...)",
        "one is 256 samples, 4 forward passes on each device",
        "memory of each device, GiB",
        "64 speech (30 s)",
        "torchrun --nproc-per-node 8 -m lsm_probe train llasm --out DIR",
    ):
        assert words in out
    show_estimate(estimate(read_config("self_powered"), ["self_powered"]), as_json=False)
    assert "optimizer steps: 6,494, the first 100 warm-up; one is 512 samples, 16" in capsys.readouterr().out


def test_a_long_launch_command_is_not_wrapped(capsys) -> None:
    arguments = ["self_powered", f"train=[{', '.join(f'folder/part-{i}.jsonl' for i in range(20))}]"]
    show_estimate(estimate(read_config("self_powered"), arguments), as_json=False)
    assert capsys.readouterr().out.splitlines()[-1].endswith("part-19.jsonl]' --out DIR")


def test_the_json_equals_the_estimate(config, capsys) -> None:
    found = estimate(config(expected_samples=100))
    show_estimate(found, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(json.dumps(found.to_dict()))
    (stage,) = shown["stages"]
    assert stage["parameters"] == sum(part["parameters"] for part in stage["parts"])
    assert stage["steps"] == 13
    memory = found.stages[0].memory
    assert stage["memory"]["unit"].startswith("GiB")
    assert stage["memory"]["total"] == pytest.approx(sum(memory.values()) / GIB, abs=1e-3)
    assert shown["launch"] == "lsm-probe train CONFIG --out DIR"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "lsm_probe", "--version"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.real
def test_the_estimate_matches_measured_memory() -> None:
    """The bytes of all tensors of SmolLM2 with tiny.en after a real step in float32."""
    from lsm_probe.training.parameters import prepare_model

    settings = TrainConfig(precision="float32", machine=Machine(device="cpu"))
    model = lsm_probe.load("builtin:untrained", device="cpu").model
    prepare_model(model, settings.resolved_stages()[0])
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    ids = torch.full((1, 8), 5)
    model(input_ids=ids, labels=ids).loss.backward()
    for parameter in model.multi_modal_projector.parameters():  # without speech it has no gradient: give it one
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    found = memory(settings)

    def held(tensors: Any) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    assert held(model.parameters()) == found["weights"]
    assert held(p.grad for p in model.parameters() if p.grad is not None) == found["gradients"]
    states = [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    assert held(states) == pytest.approx(found["AdamW"], rel=1e-6)
