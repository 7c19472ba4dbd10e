"""The typed config: files and their bases, overrides, stages, and one line for each error."""

from pathlib import Path

import pytest

from lsm_probe.errors import InputError
from lsm_probe.training.config import TrainConfig, presets, read_config


@pytest.fixture
def write(tmp_path: Path):
    """`write(name, text)`: a config file."""

    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def refusal(name: str | Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        read_config(name, overrides)
    return str(caught.value)


def test_a_file_overrides_settings_of_its_base_and_inherits_the_rest(write) -> None:
    middle = write("middle.yaml", "base: self_powered\nmodel: {encoder: openai/whisper-medium}\nepochs: 1\n")
    config = read_config(write("mine.yaml", f"base: {middle}\nmachine: {{devices: 4}}\nexpected_samples: null\n"))
    assert config.model.encoder == "openai/whisper-medium"
    assert config.model.llm == "lmsys/vicuna-7b-v1.5"
    assert (config.epochs, config.batch_size) == (1, 512)
    assert (config.machine.devices, config.machine.per_device_batch_size) == (4, 4)
    assert config.expected_samples is None


def test_an_empty_override_list_changes_nothing() -> None:
    assert read_config("self_powered") == read_config("self_powered", [])
    assert read_config("self_powered", ["epochs=2"]) == read_config("self_powered")


def test_overrides_are_yaml_and_can_set_nested_settings() -> None:
    config = read_config(
        "self_powered",
        [
            "train=[a.jsonl, b.jsonl]",
            "eval=c.jsonl",
            "machine.workers=2",
            "model.connector.window=25",
            "lora={rank: 8}",
            "lora.dropout=0.1",
            "tasks=null",
            "learning_rate=1e-4",
            "max_steps=3",
            "max_steps=5",
        ],
    )
    assert config.train == [Path("a.jsonl"), Path("b.jsonl")]
    assert config.eval == [Path("c.jsonl")]
    assert config.machine.workers == 2
    assert config.model.connector == {"connector": "window_qformer", "window": 25}
    assert (config.lora.rank, config.lora.dropout) == (8, 0.1)
    assert config.tasks is None
    assert config.learning_rate == 1e-4
    assert config.max_steps == 5  # the last override wins


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epochs", "'epochs' is not of the form key=value"),
        ("=2", "'=2' is not of the form key=value"),
        ("bogus=1", "'bogus' is not a setting"),
        ("machine.bogus=1", "machine.bogus"),
        ("epochs.first=1", "'epochs' holds no settings of its own"),
        ("train=[a", "the value is not YAML"),
        ("epochs=many", "'epochs' is 'many'"),
        ("epochs=0", "'epochs' is 0"),
        ("epochs=.inf", "'epochs' is inf"),
        ("batch_size=1.5", "'batch_size' is 1.5"),
        ("weight_decay=-1", "'weight_decay' is -1"),
        ("strategy=half", "'strategy' is 'half'"),
        ("machine.sharding=zero", "machine.sharding"),
        ("lora.dropout=1", "lora.dropout"),
        ("model.decoder_states=0", "model.decoder_states"),
        ("name=a/b", "'name' is 'a/b'"),
        ("stages=[1]", "stages.0"),
    ],
)
def test_an_invalid_override_is_refused_in_one_line(override: str, says: str) -> None:
    assert says in refusal("self_powered", override)


def test_an_invalid_file_is_refused_in_one_line(write) -> None:
    assert "presets are: " + ", ".join(presets()) in refusal("no-such-preset")
    assert "holds no settings" in refusal(write("list.yaml", "- 1\n"))
    assert "holds no settings" in refusal(write("empty.yaml", ""))
    assert "cannot be read" in refusal(write("broken.yaml", "train: [a"))
    assert "presets are: " in refusal(write("orphan.yaml", "base: no-such-preset\n"))
    assert "'bogus' is not a setting" in refusal(write("unknown.yaml", "bogus: 1\n"))


def test_a_directory_is_refused_as_a_config(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


def test_a_base_is_found_relative_to_the_file_that_names_it(write, tmp_path: Path, monkeypatch) -> None:
    write("below.yaml", "base: self_powered\nepochs: 7\n")
    above = write("above.yaml", "base: below.yaml\n")
    monkeypatch.chdir("/")
    assert read_config(above).epochs == 7


def test_a_circular_base_is_refused(write, tmp_path: Path) -> None:
    own = write("own.yaml", f"base: {tmp_path / 'own.yaml'}\n")
    assert f"is its own base ({own} -> {own})" in refusal(own)
    write("one.yaml", f"base: {tmp_path / 'two.yaml'}\n")
    write("two.yaml", f"base: {tmp_path / 'one.yaml'}\n")
    assert "is its own base" in refusal(tmp_path / "one.yaml")
    write("round.yaml", f"base: ../{tmp_path.name}/round.yaml\n")
    assert "is its own base" in refusal(tmp_path / "round.yaml")


def test_stages_inherit_common_settings_and_override_some(write) -> None:
    config = read_config(
        write(
            "two.yaml",
            "train: a.jsonl\nbatch_size: 16\nlearning_rate: 1.0e-3\nlora: {rank: 4, dropout: 0.1}\nstages:\n"
            "  - {name: first, strategy: frozen_llm}\n"
            "  - {name: second, learning_rate: 2.0e-5, train: [b.jsonl], lora: {rank: 8}}\n",
        )
    )
    first, second = config.resolved_stages()
    assert (first.name, first.strategy, first.learning_rate) == ("first", "frozen_llm", 1e-3)
    assert (second.name, second.strategy, second.learning_rate) == ("second", "full", 2e-5)
    assert first.batch_size == second.batch_size == 16
    assert (first.train, second.train) == ([Path("a.jsonl")], [Path("b.jsonl")])
    assert first.lora.rank == 4
    assert second.lora.rank == 8


def test_a_config_without_stages_is_one_stage() -> None:
    (stage,) = TrainConfig(epochs=3).resolved_stages()
    assert (stage.name, stage.epochs) == ("train", 3)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ("[{name: a}, {name: a}]", "lists stages of one name (a, a)"),
        ("[{}, {}]", "lists stages of one name (train, train)"),
        ("[{name: a, bogus: 1}]", "'bogus' is not a setting"),
        ("[{name: a, machine: {devices: 2}}]", "'machine' is"),
        ("[{name: a, epochs: -1}]", "'epochs' is -1"),
    ],
)
def test_invalid_stages_are_refused_in_one_line(stages: str, says: str) -> None:
    assert says in refusal("self_powered", f"stages={stages}")


def test_machine_settings_do_not_count_as_deciding_settings() -> None:
    config = read_config("self_powered")
    elsewhere = read_config("self_powered", ["machine.devices=2", "machine.workers=4", "expected_samples=7"])
    assert config.deciding() == elsewhere.deciding()
    assert config.deciding() != read_config("self_powered", ["learning_rate=1e-5"]).deciding()
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "override",
    [
        "hidden_size=32.7",
        "hidden_size=true",
        "hidden_size=1e3",
        "dropout=false",
        "connector=3",
        "middle_norm=1",
        "drop_partial_window=yes please",
        "window=2.5",
    ],
)
def test_a_connector_setting_of_the_wrong_type_is_refused(override: str) -> None:
    setting, _ = override.split("=")
    with pytest.raises(InputError, match=rf"{setting} is .*; it must be of type"):
        read_config("mini/commands", [f"model.connector.{override}"])


@pytest.mark.parametrize(
    ("override", "value"), [("middle_norm=false", False), ("drop_partial_window=true", True), ("dropout=0", 0)]
)
def test_a_valid_connector_setting_is_used_unchanged(override: str, value: object) -> None:
    setting, _ = override.split("=")
    projector = read_config("mini/commands", [f"model.connector.{override}"]).model.projector()
    assert getattr(projector, setting) == value


@pytest.mark.parametrize("setting", ["warmup", "weight_decay", "learning_rate", "max_grad_norm"])
def test_an_infinite_setting_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=f"'{setting}'"):
        read_config("mini/commands", [f"{setting}=.inf"])
