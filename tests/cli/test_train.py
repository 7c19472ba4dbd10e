"""`lsm-probe train`: files, output, and one line for every refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

import lsm_probe
from lsm_probe.training.run import train

pytestmark = pytest.mark.usefixtures("small_garbage")

Command = Callable[..., tuple[int, str, list[str]]]
TASKS = {"translate": "Translate the speech.", "repeat": "Say it again."}


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        (path := tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def rows(tmp_path: Path, waveform: Callable[..., np.ndarray]) -> list[dict[str, Any]]:
    """Four audio files, each with two tasks."""
    found = []
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.flac", waveform(0.4 + 0.3 * i, seed=i), 16_000)
        shared = {"audio": f"{i}.flac", "target": "the old town " * (1 + i)}
        found += [{"id": f"{task}-{i}", "task": task, "instruction": TASKS[task], **shared} for task in TASKS]
    return found


@pytest.fixture
def config(
    tmp_path: Path,
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    rows: list[dict[str, Any]],
    write_manifest: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Two steps of four samples."""
    monkeypatch.setenv("LSM_PROBE_CACHE", str(tmp_path / "cache"))
    write_manifest("train", rows)
    model = {"encoder": str(tiny_encoder_folder), "llm": str(tiny_llm_folder), "encoder_context": "trimmed"}
    settings = {
        "model": model | {"connector": {"connector": "frame_stack", "hidden_size": 32}},
        "train": str(tmp_path / "train.jsonl"),
        "batch_size": 4,
        "max_steps": 2,
        "warmup": 0,
        "machine": {"device": "cpu", "per_device_batch_size": 4, "log_steps": 1, "report_to": []},
    }
    (path := tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def train_command(lsm_probe_command: Any, config: Path, tmp_path: Path, besides_progress: Any) -> Command:
    """`train_command("key=value", ...)` trains into `out`; returns exit code, stdout, and lines of stderr without
    progress bars."""

    def run(*arguments: Any, name: str | Path = config) -> tuple[int, str, list[str]]:
        out = () if "--out" in arguments else ("--out", tmp_path / "out")
        code, stdout, stderr = lsm_probe_command("train", name, *arguments, *out)
        return code, stdout, besides_progress(stderr)

    return run


def test_a_run_writes_the_files_that_it_reports(
    train_command: Command, write_manifest: Any, rows: Any, tmp_path: Path
) -> None:
    held_out = write_manifest("held-out", rows[:4])
    code, stdout, stderr = train_command(f"eval={held_out}", 'machine.report_to=["tensorboard"]')
    assert (code, stderr) == (0, [])
    out = tmp_path / "out"
    expected = {"model", "checkpoint-2", "config.yaml", "report.json", "tensorboard"}
    expected |= {f"history.{kind}" for kind in ("json", "png", "svg", "csv")}
    assert expected <= {path.name for path in out.iterdir()}
    assert list((out / "tensorboard").glob("events.*"))
    assert not list(out.glob("checkpoint-*/*.bin"))  # no pickles of arguments
    report = json.loads((out / "report.json").read_text())
    found = report["evaluation"]
    for value in (found["eval_loss"], found["eval_loss_speech_shuffled"], found["eval_instruction_gain"]):
        assert f"{value:.3f}" in stdout
    trained, everything = report["parameters"]["trained"], report["parameters"]["all"]
    assert f"train: 2 steps, 8 samples, {trained:,} of {everything:,} parameters trained" in stdout
    assert f"lsm-probe attention --ckpt {out / 'model'}" in stdout
    checkpoint = lsm_probe.load(out / "model", device="cpu", dtype="float32")
    assert checkpoint.identity.checksums == "verified"
    prompt = checkpoint.encode("Say it again.", np.ones(4_000, np.float32))
    assert checkpoint.generate(checkpoint.embed([prompt]), max_new_tokens=3)[0]


def test_the_report_is_printed_if_plotting_fails(
    train_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("latex was not found")

    monkeypatch.setattr("lsm_probe.training.plot.save_history", fail)
    code, stdout, stderr = train_command("--json")
    assert code == 1
    assert stderr[-1].endswith("drawing them failed (RuntimeError: latex was not found)")
    assert json.loads(stdout)["model"] == str(tmp_path / "out" / "model")


def test_with_json_stdout_has_the_report_only(train_command: Command, tmp_path: Path) -> None:
    code, stdout, stderr = train_command("--json")
    assert (code, stderr) == (0, [])
    report = json.loads(stdout)
    assert report["model"] == str(tmp_path / "out" / "model")
    assert report["stages"] == [json.loads((tmp_path / "out" / "report.json").read_text())]
    assert report["stages"][0]["evaluation"] == {}


def test_two_stages_train_the_connector_and_then_all(train_command: Command, tmp_path: Path) -> None:
    stages = (
        "stages=[{name: connect, strategy: frozen_llm, tasks: [repeat]}, {name: all, strategy: lora, max_steps: 1}]"
    )
    code, stdout, stderr = train_command(stages)
    assert (code, stderr) == (0, [])
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"1-connect", "2-all", "model"}
    for folder in ("1-connect", "2-all"):
        assert (out / folder / "history.png").exists()
    assert "connect: 2 steps, 4 samples, " in stdout
    assert "all: 1 steps, 8 samples, " in stdout
    assert lsm_probe.load(out / "model", device="cpu").identity.checksums == "verified"


REFUSALS: dict[str, tuple[tuple[str, ...], str]] = {
    "no training data": (("train=[]",), "the config names no training data: add train=MANIFEST.jsonl"),
    "no such manifest": (("train=nowhere.jsonl",), "nowhere.jsonl"),
    "unknown task": (("tasks=[sing]",), "train.jsonl: no usable sample of task sing"),
    "batch not divisible": (("batch_size=6",), "stage train: a batch of 6 cannot be made of 4 samples on each"),
    "no such encoder": (("model.encoder={llm}/nowhere",), "nowhere"),
    "no Whisper": (("model.encoder={llm}",), "give a Whisper model of any size"),
    "no LSM to start from": (("model={start: '{llm}'}",), "is not an LSM of this package"),
    "unknown connector": (("model.connector={connector: glue}",), "connector 'glue' is unknown"),
    "connector's setting": (("model.connector={layers: 3}",), "layers"),
    "unknown setting": (("learning_speed=3",), "learning_speed"),
    "negative rate": (("learning_rate=-1",), "learning_rate"),
    "no key=value": (("full",), "'full' is not of the form key=value"),
    "unknown on-error": (
        ("--on-error", "ignore"),
        "'--on-error': 'ignore' is not one of 'fail', 'skip'",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_invalid_training_runs_are_refused_in_one_line(
    kind: str, train_command: Command, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    arguments, message = REFUSALS[kind]
    code, stdout, stderr = train_command(*(a.replace("{llm}", str(tiny_llm_folder)) for a in arguments))
    assert (code, stdout) == (2, "")
    assert len(stderr) == 1, stderr
    assert stderr[0].startswith("error: ")
    assert message in stderr[0]
    assert not (tmp_path / "out" / "model").exists()


def test_an_unknown_preset_error_lists_the_presets(train_command: Command) -> None:
    code, _, stderr = train_command(name="self_power")
    assert code == 2
    assert len(stderr) == 1
    assert stderr[0].startswith("error: config self_power: no such file, nor a preset; presets are: ")
    assert "self_powered" in stderr[0]


def test_a_preset_without_data_is_refused(train_command: Command) -> None:
    code, _, stderr = train_command(name="self_powered")
    assert (code, stderr) == (2, ["error: the config names no training data: add train=MANIFEST.jsonl"])


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no target": ({"target": None}, "has no target; add 'target', the response that is to be learned"),
    "no audio": ({"audio": None, "text": "green"}, "has no audio; add 'audio' to it, or leave the sample out"),
    "context": ({"context": "A passage."}, "has a context, which no prompt template takes yet"),
    "no sound file": ({"audio": "damaged.flac"}, "damaged.flac: cannot be decoded"),
}
WITH_AND_WITHOUT_CACHE = pytest.mark.parametrize("cache", ["cache_features=true", "cache_features=false"])


@WITH_AND_WITHOUT_CACHE
@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_sample_fails_or_is_skipped(
    kind: str, cache: str, train_command: Command, write_manifest: Any, rows: Any, tmp_path: Path
) -> None:
    change, message = UNUSABLE[kind]
    (tmp_path / "damaged.flac").write_bytes(b"not audio at all")
    rows[3] = {key: value for key, value in (rows[3] | change).items() if value is not None}
    write_manifest("train", rows)
    code, _, stderr = train_command(cache)
    assert (code, len(stderr)) == (2, 1)
    assert stderr[0].startswith(f"error: {tmp_path / 'train.jsonl'}, line 4: ")
    assert message in stderr[0]
    code, stdout, stderr = train_command(cache, "--on-error", "skip", "--out", tmp_path / "skipped")
    assert (code, len(stderr)) == (0, 1)
    assert stderr[0].startswith("warning: left out 1: ")
    assert message in stderr[0]
    assert "2 steps, 7 samples" in stdout


@pytest.fixture
def damaged(rows: Any, tmp_path: Path) -> Path:
    """A FLAC with a valid header and end, and 64 bytes damaged in the middle."""
    path = tmp_path / rows[2]["audio"]
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    return path


@WITH_AND_WITHOUT_CACHE
def test_damage_beyond_the_header_stops_the_run(cache: str, train_command: Command, damaged: Path) -> None:
    code, stdout, stderr = train_command(cache)
    assert (code, stdout) == (2, "")
    assert len(stderr) == 1, stderr
    assert stderr[0].startswith("error: sample '")
    assert str(damaged) in stderr[0]


def test_damage_beyond_the_header_is_skipped_with_cached_features(train_command: Command, damaged: Path) -> None:
    code, stdout, stderr = train_command("cache_features=true", "--on-error", "skip")
    assert (code, len(stderr)) == (0, 1)
    assert stderr[0].startswith("warning: left out 1: sample '")
    assert str(damaged) in stderr[0]
    assert "2 steps, 6 samples" in stdout  # both tasks of that speech


def test_no_usable_sample_is_an_error(train_command: Command, damaged: Path, write_manifest: Any, rows: Any) -> None:
    write_manifest("train", rows[2:4])
    code, _, stderr = train_command("cache_features=true", "--on-error", "skip")
    assert code == 2
    assert "no usable sample" in stderr[-1]


@WITH_AND_WITHOUT_CACHE
def test_a_sample_longer_than_the_context_is_refused(
    cache: str, train_command: Command, write_manifest: Any, rows: Any, tmp_path: Path
) -> None:
    rows[5]["target"] = "the old town " * 400
    write_manifest("train", rows)
    code, _, stderr = train_command(cache)
    assert (code, len(stderr)) == (2, 1)
    assert stderr[0].startswith("error: sample 'repeat-2': its ")
    assert stderr[0].endswith("tokens exceed the LLM's context of 1024; shorten it")


def test_a_folder_in_use_by_another_run_is_refused(train_command: Command, tmp_path: Path) -> None:
    assert train_command()[0] == 0
    code, _, stderr = train_command()
    assert (code, len(stderr)) == (2, 1)
    assert "holds files already: continue with --resume, or choose another folder" in stderr[0]
    code, _, stderr = train_command("learning_rate=1e-3", "--resume")
    assert (code, len(stderr)) == (2, 1)
    assert "was started with other settings or data (learning_rate)" in stderr[0]
    assert train_command("machine.per_device_batch_size=2", "--resume")[0] == 0


def test_python_and_the_command_line_give_the_same_report(train_command: Command, config: Path, tmp_path: Path) -> None:
    from lsm_probe.training.config import read_config

    _, stdout, _ = train_command("--json")
    report = train(read_config(config), tmp_path / "python")
    changing = {"seconds", "tokens_per_second"}
    [one], [other] = (
        [{key: value for key, value in stage.items() if key not in changing} for stage in stages]
        for stages in (json.loads(stdout)["stages"], report["stages"])
    )
    assert one == other
