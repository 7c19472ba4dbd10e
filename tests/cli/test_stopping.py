"""Ctrl-C and SIGTERM: one line that says how to resume, and an exit code for each signal."""

import os
import signal
import time

import pytest

CODES = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "stopped by SIGTERM")}


@pytest.fixture
def signalled(monkeypatch):
    """`signalled(target, number)`: replaces a function by one that sends this process a signal and then takes a
    minute."""

    def patch(target, number):
        def work(*args, **kwargs):
            os.kill(os.getpid(), number)
            time.sleep(60)

        monkeypatch.setattr(target, work)

    return patch


@pytest.mark.parametrize("number", CODES)
def test_an_interrupted_probe_stops_at_once_and_prints_how_to_resume(
    lsm_probe_command, tiny_llm_folder, signalled, tmp_path, number
):
    manifest = tmp_path / "data.jsonl"
    manifest.write_text('{"id": "a", "instruction": "Do.", "text": "some words"}\n')
    signalled("lsm_probe.runner.measurement_run.MeasurementRun.run", number)
    begun = time.monotonic()
    code, _, stderr = lsm_probe_command(
        "attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out"
    )
    assert (code, stderr.splitlines()[-1]) == (
        CODES[number][0],
        f"{CODES[number][1]}: run the same command with --resume to continue",
    )
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("number", CODES)
def test_an_interrupted_command_without_resume_stops_at_once(lsm_probe_command, signalled, tmp_path, number):
    signalled("lsm_probe.reports.collection.read_results", number)
    code, _, stderr = lsm_probe_command("report", tmp_path, "--out", tmp_path / "report.html")
    assert (code, stderr) == (CODES[number][0], f"{CODES[number][1]}\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
