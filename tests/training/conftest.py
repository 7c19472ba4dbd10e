"""A training set for runs of seconds: noise and a few sentences, and a tiny LSM."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import yaml
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import lsm_probe
from lsm_probe import cli
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.training.config import Stage, TrainConfig, read_config
from lsm_probe.training.parameters import parameter_groups
from lsm_probe.training.run import train

KILLS = Path(__file__).parents[2] / "analyses" / "fault_tests" / "train_kills.py"

TASKS = {"translate": "Translate the speech into German.", "repeat": "Write down what the speaker says."}
SOUNDS = 12  # of 0.4, 0.8 or 1.2 s; each in every task
HELD_OUT = 4


@pytest.fixture(scope="session", autouse=True)
def _small_garbage(small_garbage: None) -> None:
    """Used by all of these tests."""


@pytest.fixture(scope="session")
def training_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_llm_folder: Path, tiny_encoder_folder: Path, waveform
) -> Path:
    """`train.jsonl` (20 samples), `eval.jsonl` (4), their audio, and `tiny.yaml`; do not write into it."""
    folder = tmp_path_factory.mktemp("training")
    rows = []
    for i in range(SOUNDS):
        soundfile.write(folder / f"{i}.wav", waveform(0.4 * (1 + i % 3), seed=i), 16_000)
        target = "the old town " * (1 + i % 4)
        shared = {"audio": f"{i}.wav", "target": target.strip()}
        rows += [{"id": f"{task}-{i}", "task": task, "instruction": TASKS[task], **shared} for task in TASKS]
    for name, part in (("train", rows[:-HELD_OUT]), ("eval", rows[-HELD_OUT:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    connector = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    model = {"encoder": str(tiny_encoder_folder), "llm": str(tiny_llm_folder), "encoder_context": "trimmed"}
    settings = {
        "model": model | {"connector": connector | {"dropout": 0.1}},
        "train": str(folder / "train.jsonl"),
        "batch_size": 4,
        "max_steps": 9,  # an epoch has 5
        "learning_rate": 1e-3,
        "warmup": 1,
        "precision": "float32",  # on every machine
        "machine": {
            "device": "cpu",
            "per_device_batch_size": 4,
            "save_steps": 2,
            "log_steps": 1,
            "report_to": [],
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="session")
def training_config(training_folder: Path) -> Callable[..., TrainConfig]:
    """`training_config("key=value", ...)`: 9 steps of 4 samples, dropout in the connector, every second step saved."""
    return lambda *overrides: read_config(training_folder / "tiny.yaml", overrides)


@pytest.fixture(scope="session")
def probing(training_folder: Path, tiny_llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """`key=value` that measure the bias on the held-out samples every third step, on responses of the tiny text LLM."""
    rows = [json.loads(line) for line in (training_folder / "eval.jsonl").read_text().splitlines()]
    manifest = tmp_path_factory.mktemp("probing") / "probed.jsonl"
    spoken = [row | {"audio": str(training_folder / row["audio"]), "text": f"words {row['audio']}"} for row in rows]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in spoken))
    return "probe_every=3", f"probe_samples={manifest}", f"probe_base={tiny_llm_folder}"


@pytest.fixture(scope="session")
def uninterrupted(training_config, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`uninterrupted("key=value", ...)`: the folder of such a run, trained once; do not write into it."""
    made: dict[tuple[str, ...], Path] = {}

    def trained(*overrides: str) -> Path:
        if overrides not in made:
            made[overrides] = tmp_path_factory.mktemp("uninterrupted") / "out"
            train(training_config(*overrides), made[overrides])
        return made[overrides]

    return trained


@pytest.fixture(scope="session")
def probed_run(uninterrupted, probing) -> Callable[..., Path]:
    """`probed_run("key=value", ...)`: as `uninterrupted`, with `probing`."""
    return lambda *overrides: uninterrupted(*overrides, *probing)


class Stopped(BaseException):
    """Ends a run in the test's own process, faster than killing a process; it leaves the same files as a kill."""


@pytest.fixture(scope="session")
def stop_at() -> Callable[[int], Callable[..., None]]:
    """`stop_at(step)`: an `on_progress` that raises `Stopped` after the update of that step, before it is saved."""

    def on_progress_until(step: int) -> Callable[..., None]:
        def on_progress(_: str, done: int, *__: object) -> None:
            if done == step:
                raise Stopped(f"step {step}")

        return on_progress

    return on_progress_until


@pytest.fixture
def stopped_run(training_config, stop_at, tmp_path: Path) -> Callable[..., Path]:
    """`stopped_run(step, "key=value", ...)`: the folder of a run that ended in that step."""

    def begin(step: int, *overrides: str) -> Path:
        with pytest.raises(Stopped):
            train(training_config(*overrides), tmp_path / "stopped", on_progress=stop_at(step))
        return tmp_path / "stopped"

    return begin


@pytest.fixture
def finished_run(uninterrupted, tmp_path: Path) -> Callable[..., Path]:
    """`finished_run("key=value", ...)`: a copy of the folder of an uninterrupted run."""
    return lambda *overrides: shutil.copytree(uninterrupted(*overrides), tmp_path / "finished")


@pytest.fixture
def train_command(training_folder: Path, capsys, monkeypatch, besides_progress) -> Callable[..., tuple[int, list[str]]]:
    """`train_command(*arguments)` runs `lsm-probe train tiny.yaml`; returns exit code and lines of stderr without
    the progress bar."""

    def run(*arguments: Any) -> tuple[int, list[str]]:
        command = ["lsm-probe", "train", training_folder / "tiny.yaml", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, besides_progress(capsys.readouterr().err)

    return run


@pytest.fixture(scope="session")
def kills() -> ModuleType:
    """The script that kills training at random times."""
    spec = importlib.util.spec_from_file_location("train_kills", KILLS)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_kills"] = module  # dataclasses need it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def launcher(kills) -> Iterator[Any]:
    """Starts `lsm-probe` in processes that can be killed."""
    with kills.Launcher() as launcher:
        yield launcher


@pytest.fixture(scope="session")
def model_sha256(kills) -> Callable[[Path], str]:
    """`model_sha256(folder)`: of the weights of a run's final model."""
    return kills.model_sha256


@pytest.fixture
def gpt2_lsm(tmp_path: Path, tiny_encoder_folder: Path, tiny_projector, make_tokenizer) -> Checkpoint:
    """An LSM on GPT-2, whose LLM has biases everywhere, other names of layers, and `Conv1D` for linear layers."""
    config = GPT2Config(n_embd=48, n_layer=3, n_head=4, vocab_size=448, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    make_tokenizer().save_pretrained(tmp_path / "gpt2")
    return lsm_probe.build_lsm(tiny_encoder_folder, tmp_path / "gpt2", projector=tiny_projector())


@pytest.fixture(params=["tiny_lsm", "gpt2_lsm"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return request.getfixturevalue(request.param)


@pytest.fixture
def groups_of(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """`groups_of(model, stage)`: the optimizer's parameter groups, as in a run."""

    def groups(model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        trainer = Trainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
        return parameter_groups(model, trainer.get_decay_parameter_names(model), stage)

    return groups
