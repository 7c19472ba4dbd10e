"""A name that can only be a folder is refused with a suggestion; other names are looked up on the model hub."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_names import may_be_on_hub, require_folder
from lsm_probe.models.lookup import load_prompter, look_up


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `my-checkpoint`, `runs/vanilla/model` and a file; no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for folder in ("my-checkpoint", "runs/vanilla/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(function: Callable[..., object], name: str) -> str:
    with pytest.raises(InputError) as caught:
        function(name)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./my-checkpont", "there is no folder my-checkpont in HERE; did you mean my-checkpoint?"),
        ("my-checkpont/", "there is no folder my-checkpont in HERE; did you mean my-checkpoint?"),
        ("HERE/my-checkpont", "there is no folder my-checkpont in HERE; did you mean HERE/my-checkpoint?"),
        ("runs/vanila/model", "there is no folder vanila in HERE/runs; did you mean runs/vanilla/model?"),
        ("runs/vanila/other", "there is no folder vanila in HERE/runs; did you mean runs/vanilla?"),
        ("runs/vanilla/step-100", "there is no folder step-100 in HERE/runs/vanilla; check the path"),
        ("/nothere/model", "there is no folder nothere in /; check the path"),
        ("./file/model", "there is no folder model in HERE/file; check the path"),
        ("~/runs/vanilla", "~ is not read as the home folder here; did you mean HERE/runs/vanilla?"),
        ("~/nothere", "there is no folder nothere in HERE; check the path"),
        ("~nosuchuser/x/y", "there is no folder ~nosuchuser in HERE; check the path"),
        ("file", "it is a file; give the folder that holds it"),
    ],
)
@pytest.mark.parametrize("load", [lsm_probe.load, load_prompter, look_up])
def test_a_missing_folder_is_refused(
    load: Callable[..., object], name: str, expected: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    name, expected = (text.replace("HERE", str(here)) for text in (name, expected))
    assert refusal(load, name) == f"{name} cannot be loaded: {expected}"


@pytest.mark.parametrize("name", ["a\0b/c/d", "/" + "x" * 5000])
def test_an_invalid_path_is_refused(name: str) -> None:
    assert "cannot be loaded" in refusal(require_folder, name)


def test_a_folder_without_read_permission_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", denied)
    message = refusal(require_folder, "/theirs/model")
    assert message == "/theirs/model cannot be loaded (Permission denied); check the path and its permissions"


@pytest.mark.parametrize("name", ["gpt2", "my-checkpont", "nobody/no-such-model", "my-checkpoint"])
def test_possible_hub_names_are_not_refused(name: str) -> None:
    require_folder(name)
    if name != "my-checkpoint":
        assert look_up(name) is None


@pytest.mark.parametrize("name", ["builtin:llm", "my-checkpoint", "./gpt2", "a/b/c", "builtin:whisper + builtin:llm"])
def test_names_that_cannot_be_on_the_hub_are_not_looked_up_there(name: str) -> None:
    assert may_be_on_hub("gpt2")
    assert not may_be_on_hub(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my-checkpont", "there is no folder my-checkpont in HERE (did you mean my-checkpoint?), and the model hub"),
        ("runs/vanila", "there is no folder vanila in HERE/runs (did you mean runs/vanilla?), and the model hub"),
        ("gpt2", "there is no folder gpt2 in HERE, and the model hub does not give it: "),
    ],
)
def test_an_error_of_the_hub_first_names_the_missing_folder(name: str, expected: str, here: Path) -> None:
    message = refusal(lsm_probe.load, name)
    assert message.startswith(f"{name} cannot be loaded: {expected.replace('HERE', str(here))}")
    assert not message.endswith(": ")


def test_build_lsm_refuses_missing_parts(tiny_encoder_folder: Path, tiny_llm_folder: Path) -> None:
    for parts in (("./nothere", tiny_llm_folder), (tiny_encoder_folder, "./nothere")):
        with pytest.raises(InputError, match="there is no folder nothere in"):
            lsm_probe.build_lsm(*parts)


def test_the_kind_of_a_checkpoint_is_found_without_loading_it(
    tiny_lsm_folder: Path, tiny_llm_folder: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert look_up("builtin:llm") == look_up(str(tiny_llm_folder)) == "text"
    assert look_up("builtin:untrained") == look_up(str(tiny_lsm_folder)) == "speech"
    assert look_up(str(tiny_encoder_folder)) is None
    assert "builtin:lm is unknown; built-in checkpoints are: builtin:llm" in refusal(look_up, "builtin:lm")
    assert "no config.json" in refusal(look_up, "my-checkpoint")
