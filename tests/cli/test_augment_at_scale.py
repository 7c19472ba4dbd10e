"""`lsm-probe augment --server`: output and errors."""

import importlib.util
import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lsm_probe.data.augmentation import at_scale
from lsm_probe.extras import install_command

pytest.importorskip("datatrove")

KILLS = Path(__file__).parents[2] / "analyses" / "fault_tests" / "augment_kills.py"


@pytest.fixture
def server():
    """A server that gives the same answer to every prompt."""
    spec = importlib.util.spec_from_file_location("augment_kills", KILLS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    with module.CompletionServer(lambda prompt, max_tokens: ("Yes.", "stop", 2)) as server:
        yield server
    del sys.modules[spec.name]


@pytest.fixture
def augment(lsm_probe_command, tiny_llm_folder, tmp_path):
    """`augment(*options)` on six transcripts."""
    data = tmp_path / "data.jsonl"
    rows = [{"id": f"s{i}", "instruction": "x", "text": f"{word} rain"} for i, word in enumerate(("a", "the") * 3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("augment", "--data", data, "--llm", tiny_llm_folder, "--out", tmp_path / "out")
    return lambda *options: lsm_probe_command(*common, "--max-prompt-tokens", 400, *options)


def test_progress_goes_to_stderr_and_json_to_stdout(augment, server):
    code, stdout, stderr = augment("--server", server.url, "--json")
    assert code == 0
    report = json.loads(stdout)
    assert (report["samples"], report["kept"], report["tokens_per_second"]) == (6, 6, None)
    assert "6/6" in stderr
    assert "INFO" not in stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--server", "somewhere"), "neither `vllm` nor a URL"),
        (("--server", "http://localhost:9"), "no server at http://localhost:9/v1/models"),
        (("--workers", 2), "--workers is for --server URL"),
        (("--server", "vllm", "--device", "cpu"), "--device is for generation in this process"),
        (("--server", "vllm"), install_command("vllm")),
    ],
)
def test_invalid_options_are_refused_in_one_line(augment, tmp_path, options, message):
    code, stdout, stderr = augment(*options)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_datatrove_is_reported(augment, monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(at_scale, "version", missing)
    message = f"error: --server needs datatrove, which is not installed: {install_command('scale')}\n"
    assert augment("--server", "http://localhost:9") == (2, "", message)
