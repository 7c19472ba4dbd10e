"""A probe of another package: one file and an entry point give it everything that the package's own probes have."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "analyses" / "notebooks" / "own_probe.py"
RUN = """
import sys
from lsm_probe.cli import main

for arguments in {commands!r}:
    sys.argv = ["lsm-probe", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
BROKEN = """
from lsm_probe import Measurement

def measure(checkpoint, samples, *, limit=3, **options): ...

def named(name, measure):
    return Measurement(name=name, help="H.", measure=measure, result="none:None")

nowhere, taken, other = named("nowhere", "no.where:at"), named("taken", measure), named("attention", measure)
"""


def run_commands(folder, module, source, probes, commands):
    """Runs commands where a package in `folder` names probes of its `module`."""
    (folder / f"{module}.py").write_text(source)
    about = folder / f"{module}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    lines = "".join(f"{name} = {module}:{value}\n" for name, value in probes.items())
    (about / "entry_points.txt").write_text(f"[lsm_probe.probes]\n{lines}")
    path = f"{folder}:{Path(__file__).parents[2]}"
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin", "HOME": str(folder), "COLUMNS": "200"}
    script = [sys.executable, "-c", RUN.format(commands=commands)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_lsm_folder, tiny_llm_folder, samples):
    """What the commands of the notebook's probe printed, and their folder."""
    folder = tmp_path_factory.mktemp("own")
    source = NOTEBOOK.read_text(encoding="utf-8")
    source = source[: source.index("# %% [markdown]\n# To get the command")]
    manifest = folder / "clips.jsonl"
    manifest.write_text("".join(sample.model_dump_json(exclude_none=True) + "\n" for sample in samples))
    out, page = str(folder / "shift"), str(folder / "report.html")
    shift = ["shift", "--data", str(manifest), "--out", out, "--ckpt", str(tiny_llm_folder), "--ckpt"]
    shift += [str(tiny_lsm_folder), "--device", "cpu", "--batch-size", "3"]
    commands = [["--help"], shift, [*shift, "--resume", "--json"], ["report", out, "--out", page, "--no-notebook"]]
    return folder, run_commands(folder, "own_probe", source, {"shift": "PROBE"}, commands).stdout


def test_an_own_probe_becomes_a_command(ran):
    assert "How much the first response token depends on the words" in " ".join(re.sub(r"[│\s]+", " ", ran[1]).split())


def test_an_own_probe_writes_folder_table_figures_and_comparison(ran):
    folder, stdout = ran
    assert all((folder / "shift" / f"shift.{kind}").exists() for kind in ("png", "svg", "csv"))
    assert "shift_ci_low" in stdout
    (pair,) = json.loads((folder / "shift" / "comparison.json").read_text())["pairs"]
    stored = [json.loads((folder / "shift" / name / "result.json").read_text()) for name in ("llm", "lsm")]
    assert stored[0]["schema"] == "lsm-probe/shift/2"
    means = [result["shift"]["mean"] for result in stored]
    assert pair["shift_difference"]["mean"] == pytest.approx(means[1] - means[0], abs=2e-6)
    assert pair["shift_difference"]["ci_low"] <= pair["shift_difference"]["mean"] <= pair["shift_difference"]["ci_high"]


def test_an_own_probe_has_a_section_in_the_report(ran):
    (section,) = re.findall(r'<section id="shift">.*?</section>', (ran[0] / "report.html").read_text(), re.DOTALL)
    assert "<svg" in section
    assert "shift_ci_high" in section


def test_a_broken_own_probe_does_not_break_other_commands(tmp_path):
    probes = {name: name for name in ("nowhere", "taken", "other", "gone")}
    commands = [["--version"], ["attention", "--help"], ["--help"]]
    said = run_commands(tmp_path, "broken", BROKEN, probes, commands).stderr
    assert "Traceback" not in said
    assert all(line.startswith("warning: the probe ") for line in said.splitlines())
    assert {name for name in probes if f"'{name}'" in said} == set(probes)
    assert "every command has an option 'limit'" in said
