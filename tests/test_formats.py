"""YAML and JSON that mean one thing only, and words that stay words."""

import pytest
import yaml

from lsm_probe.data.pools import read_pool
from lsm_probe.errors import InputError
from lsm_probe.formats import RepeatedKey, load_json, load_yaml
from lsm_probe.training.config import read_config


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "NO", "y", "010", "1:30", "2026-11-29", "1_000", "="])
def test_words_and_codes_are_no_booleans_numbers_or_dates(word):
    assert load_yaml(f"labels: [{word}]") == {"labels": [word]}


@pytest.mark.parametrize(
    ("written", "value"),
    [("true", True), ("-12", -12), ("0x1F", 31), ("1e-3", 0.001), ("2.5E4", 25_000.0), ("~", None), ("", None)],
)
def test_plain_values_are_read_as_yaml_1_2_has_them(written, value):
    assert load_yaml(f"key: {written}") == {"key": value}
    assert type(load_yaml(f"key: {written}")["key"]) is type(value)


def test_repeated_keys_are_refused_at_any_depth():
    with pytest.raises(yaml.YAMLError, match="the key 'b' is there twice"):
        load_yaml("a:\n  - {b: 1, b: 2}")
    with pytest.raises(RepeatedKey, match="the key 'b' is there twice"):
        load_json('{"a": [{"b": 1, "b": 2}]}')
    base = "base: &base {a: 1, b: 2}\nown:\n  <<: *base\n  b: 3"
    assert load_yaml(base)["own"] == {"a": 1, "b": 3}


def test_the_labels_on_and_off_are_words(tmp_path):
    path = tmp_path / "pool.yaml"
    path.write_text("tasks:\n- task: switch\n  instructions: ['{labels}?']\n  labels: [on, off]\n")
    assert read_pool(path).tasks[0].labels == ["on", "off"]
    path.write_text(path.read_text().replace("[on, off]", "[1, 2]"))
    with pytest.raises(InputError, match="task 'switch', labels, 0: 1 is not text; put it in quotes"):
        read_pool(path)


def test_configs_are_read_strictly(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes("machine: {gradient_checkpointing: yes}\ntasks: [no]\nseed: 010\n".encode("utf-8-sig"))
    config = read_config(path)
    assert (config.machine.gradient_checkpointing, config.tasks, config.seed) == (True, ["no"], 10)
    path.write_text("seed: 1\nbatch_size: 4\nseed: 2\n")
    with pytest.raises(InputError, match=r"cannot be read.*the key 'seed' is there twice.*line 3"):
        read_config(path)
    with pytest.raises(InputError, match="~ is not read as the home folder here"):
        read_config("~/config.yaml")
