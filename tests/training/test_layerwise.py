"""Strategy `layerwise_lr`: each layer of the LLM has its own learning rate, written by importance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.probes.importance.learning_rates import layer_rates, write_rates
from lsm_probe.training.config import Stage, read_config
from lsm_probe.training.parameters import prepare_model

Groups = Callable[..., list[dict[str, Any]]]

RATES = [1.0, 0.625, 0.75]
BASE, CONNECTOR_RATE = 1e-4, 1e-3


def stage(**settings: Any) -> Stage:
    rates = {"learning_rate": BASE, "connector_learning_rate": CONNECTOR_RATE, "weight_decay": 0.05}
    return Stage.model_validate({"strategy": "layerwise_lr", "layer_rates": RATES} | rates | settings)


def by_name(model: nn.Module, groups: list[dict[str, Any]], key: str) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(parameter)], group[key]) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


def layer_number(name: str) -> int | None:
    """The layer number of a parameter of the LLM, in the naming of both families."""
    for start in ("language_model.model.layers.", "language_model.transformer.h."):
        if name.startswith(start):
            return int(name.removeprefix(start).split(".")[0])
    return None


def test_matrices_have_the_rate_of_their_layer_and_other_weights_the_base_rate(
    checkpoint: Checkpoint, groups_of: Groups
) -> None:
    model = prepare_model(checkpoint.model, stage())
    found = by_name(model, groups_of(model, stage()), "lr")
    parameters = dict(model.named_parameters())
    assert set(found) == {name for name in parameters if not name.startswith("audio_tower.")}
    seen = set()
    for name, rate in found.items():
        layer, is_matrix = layer_number(name), parameters[name].dim() >= 2
        kind = "connector" if name.startswith("multi_modal_projector.") else (layer if is_matrix else "norm or bias")
        seen.add(kind)
        if kind == "connector":
            assert rate == CONNECTOR_RATE, name
        elif layer is not None and is_matrix:
            assert rate == pytest.approx(BASE * RATES[layer]), name
        else:  # embeddings, head, norms, biases
            assert rate == BASE, name
    assert seen == {"connector", 0, 1, 2, "norm or bias", None}


def test_weight_decay_does_not_depend_on_layer_rates(checkpoint: Checkpoint, groups_of: Groups) -> None:
    model = prepare_model(checkpoint.model, stage())
    own, full = (
        by_name(model, groups_of(model, settings), "weight_decay") for settings in (stage(), stage(strategy="full"))
    )
    assert own == full
    assert set(own.values()) == {0.0, 0.05}


def test_a_connector_without_its_own_rate_uses_the_base_rate(tiny_lsm: Checkpoint, groups_of: Groups) -> None:
    settings = stage(connector_learning_rate=None)
    model = prepare_model(tiny_lsm.model, settings)
    found = by_name(model, groups_of(model, settings), "lr")
    assert {rate for name, rate in found.items() if name.startswith("multi_modal_projector.")} == {BASE}


def test_adapters_have_the_rate_of_their_layer(checkpoint: Checkpoint, groups_of: Groups) -> None:
    settings = stage(strategy="lora")
    model = prepare_model(checkpoint.model, settings)
    found = by_name(model, groups_of(model, settings), "lr")
    adapters = {name.removeprefix("base_model.model."): rate for name, rate in found.items() if ".lora_" in name}
    assert adapters == {name: pytest.approx(BASE * RATES[layer_number(name)]) for name in adapters}
    assert {layer_number(name) for name in adapters} == {0, 1, 2}
    assert {rate for name, rate in found.items() if ".lora_" not in name} == {CONNECTOR_RATE}


@pytest.mark.parametrize("strategy", ["full", "frozen_llm", "align"])
def test_rates_that_no_stage_uses_are_refused(strategy: str) -> None:
    says = "gives layer_rates, which only the strategies layerwise_lr and lora use"
    assert says in refusal("layer_rates=[1, 0.5]", f"strategy={strategy}")
    own = f"{{name: first, strategy: {strategy}, layer_rates: [1, 0.5]}}"
    with pytest.raises(InputError, match=says):
        read_config("self_powered", [f"stages=[{own}, {{name: second, strategy: lora}}]"])
    two = f"stages=[{{name: first, strategy: {strategy}}}, {{name: second, strategy: lora}}]"
    assert read_config("self_powered", ["layer_rates=[1, 0.5]", two]).layer_rates == [1, 0.5]


def test_the_trained_parameters_equal_those_of_full_training(tiny_lsm: Checkpoint) -> None:
    trained = {}
    for strategy in ("full", "layerwise_lr"):
        model = prepare_model(tiny_lsm.model, stage(strategy=strategy))
        trained[strategy] = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained["layerwise_lr"] == trained["full"]


@pytest.mark.parametrize("number", [2, 4])
def test_rates_for_another_number_of_layers_are_refused_in_one_line(
    tiny_lsm: Checkpoint, groups_of: Groups, number: int
) -> None:
    settings = stage(layer_rates=[0.5] * number)
    model = prepare_model(tiny_lsm.model, settings)
    with pytest.raises(InputError, match=f"^layer_rates holds {number} rates, but the LLM has 3 layers"):
        groups_of(model, settings)


# The config


def refusal(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        read_config("self_powered", ["strategy=layerwise_lr", *overrides])
    return str(caught.value)


def test_rates_come_as_a_list_or_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text("rates: [1.0, 0.625, 0.75]\nstrength: 0.4\n")
    for given in (path, "[1, 0.625, 0.75]"):
        config = read_config("self_powered", ["strategy=layerwise_lr", f"layer_rates={given}"])
        assert config.layer_rates == RATES
        assert config.resolved_stages()[0].layer_rates == RATES
        assert config.deciding()["layer_rates"] == RATES


def test_rates_written_by_importance_are_read_by_training(tiny_llm: Checkpoint, tmp_path: Path) -> None:
    samples = [Sample(id="a", instruction="Repeat it.", text="the old town", target="the old town")]
    result = lsm_probe.importance(tiny_llm, samples, modality="text")
    write_rates(result, 0.4, tmp_path / "rates.yaml")
    config = read_config("self_powered", ["strategy=layerwise_lr", f"layer_rates={tmp_path / 'rates.yaml'}"])
    assert config.layer_rates == layer_rates(result, 0.4)
    assert (min(config.layer_rates), max(config.layer_rates)) == (0.6, 1.0)


def test_a_config_without_rates_is_refused() -> None:
    assert "strategy=layerwise_lr needs layer_rates: a file of importance --write-lr-schedule" in refusal()
    assert "needs layer_rates" in refusal("layer_rates=null")


@pytest.mark.parametrize("content", ["", "- 1\n", "strength: 0.4\n", "rates: [a", "just words", "\x00\xff"])
def test_a_file_without_rates_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(content, encoding="latin-1")
    message = refusal(f"layer_rates={path}")
    assert f"{path} holds no rates" in message
    assert "write it with lsm-probe importance" in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "holds no rates" in refusal(f"layer_rates={tmp_path / 'none.yaml'}")
    assert "holds no rates" in refusal(f"layer_rates={tmp_path}")


@pytest.mark.parametrize("rates", ["[1.0, 0.0]", "[1.0, -0.5]", "[1.0, fast]", "[1.0, .nan]", "[1.0, .inf]", "0.5"])
def test_invalid_rates_are_refused(tmp_path: Path, rates: str) -> None:
    assert "layer_rates" in refusal(f"layer_rates={rates}")
    (tmp_path / "rates.yaml").write_text(f"rates: {rates}\n")
    assert "layer_rates" in refusal(f"layer_rates={tmp_path / 'rates.yaml'}")


# A run


@pytest.fixture
def rates_file(tmp_path: Path) -> Path:
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump({"rates": RATES, "strength": 0.375}))
    return path


def test_weight_changes_are_proportional_to_the_layer_rates(
    train_command: Callable[..., tuple[int, list[str]]], rates_file: Path, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Adam's first step changes every weight by its learning rate, whatever the gradient."""
    out = tmp_path / "out"
    code, stderr = train_command(
        "strategy=layerwise_lr",
        f"layer_rates={rates_file}",
        *("max_steps=1", "warmup=0", "schedule=constant", "weight_decay=0", "learning_rate=1e-3"),
        "--out",
        out,
    )
    assert (code, stderr) == (0, [])
    assert yaml.safe_load((out / "config.yaml").read_text())["layer_rates"] == RATES
    before, after = load_file(tiny_llm_folder / "model.safetensors"), {}
    for path in (out / "model").glob("*.safetensors"):
        after |= load_file(path)
    moved = {name: (after[f"language_model.{name}"] - weight).abs() for name, weight in before.items()}
    for name, distance in moved.items():
        layer = layer_number(f"language_model.{name}")
        rate = RATES[layer] if layer is not None and distance.dim() >= 2 else 1.0
        assert distance.max().item() == pytest.approx(1e-3 * rate, rel=2e-3), name
        assert torch.median(distance[distance > 0]).item() == pytest.approx(1e-3 * rate, rel=2e-2), name


def test_a_run_with_rates_for_another_model_is_refused_in_one_line(
    train_command: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    code, stderr = train_command("strategy=layerwise_lr", "layer_rates=[0.5, 1.0]", "--out", tmp_path / "out")
    assert code == 2
    assert stderr == [
        "error: layer_rates holds 2 rates, but the LLM has 3 layers: write them for this LLM, with importance "
        "--write-lr-schedule"
    ]


def test_a_run_without_rates_is_refused_in_one_line(
    train_command: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    code, stderr = train_command("strategy=layerwise_lr", "--out", tmp_path / "out")
    assert code == 2
    assert len(stderr) == 1
    assert "needs layer_rates" in stderr[0]


def test_resuming_with_a_changed_rates_file_is_refused(
    train_command: Callable[..., tuple[int, list[str]]], rates_file: Path, tmp_path: Path
) -> None:
    arguments = ("strategy=layerwise_lr", f"layer_rates={rates_file}", "max_steps=1", "--out", tmp_path / "out")
    assert train_command(*arguments) == (0, [])
    rates_file.write_text("rates: [1.0, 1.0, 0.5]\n")
    code, stderr = train_command(*arguments, "--resume")
    assert code == 2
    assert len(stderr) == 1
    assert "layer_rates" in stderr[0]


def test_the_rates_of_a_stage_are_stored_as_numbers(rates_file: Path) -> None:
    """A stage may have its own file; the stored rates must not change with the file."""
    tune = f"{{name: tune, strategy: layerwise_lr, layer_rates: {rates_file}}}"
    config = read_config("self_powered", [f"stages=[{{name: align, strategy: frozen_llm}}, {tune}]"])
    assert config.resolved_stages()[1].layer_rates == RATES
    assert config.deciding()["stages"][1]["layer_rates"] == RATES
