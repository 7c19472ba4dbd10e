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


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_lsm_folder, tiny_llm_folder, samples):
    """What the commands of the notebook's probe printed, and their folder."""
    folder = tmp_path_factory.mktemp("own")
    source = NOTEBOOK.read_text(encoding="utf-8")
    (folder / "own_probe.py").write_text(source[: source.index("# %% [markdown]\n# To get the command")])
    about = folder / "own_probe-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-probe\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[lsm_probe.probes]\nshift = own_probe:PROBE\n")
    manifest = folder / "clips.jsonl"
    manifest.write_text("".join(sample.model_dump_json(exclude_none=True) + "\n" for sample in samples))
    out = str(folder / "shift")
    shift = ["shift", "--data", str(manifest), "--out", out, "--device", "cpu", "--batch-size", "3"]
    checkpoints = ["--ckpt", str(tiny_llm_folder), "--ckpt", str(tiny_lsm_folder)]
    commands = [["--help"], [*shift, *checkpoints], [*shift, *checkpoints, "--resume", "--json"]]
    commands.append(["report", out, "--out", str(folder / "report.html"), "--no-notebook"])
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(commands=commands)],
        env={"PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}", "PATH": "/usr/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_is_a_command(ran):
    assert "How much the first response token depends on the words" in " ".join(re.sub(r"[│\s]+", " ", ran[1]).split())


def test_it_writes_a_folder_a_table_figures_and_the_comparison(ran):
    folder, stdout = ran
    files = {path.name for path in (folder / "shift").iterdir()} - {".lock"}
    assert files >= {"llm", "lsm", "comparison.json", "shift.png", "shift.svg", "shift.csv"}
    assert "shift_ci_low" in stdout
    (pair,) = json.loads((folder / "shift" / "comparison.json").read_text())["pairs"]
    stored = [json.loads((folder / "shift" / name / "result.json").read_text()) for name in ("llm", "lsm")]
    assert stored[0]["schema"] == "lsm-probe/shift/2"
    means = [result["shift"]["mean"] for result in stored]
    assert pair["shift_difference"]["mean"] == pytest.approx(means[1] - means[0], abs=2e-6)
    assert pair["shift_difference"]["ci_low"] <= pair["shift_difference"]["mean"] <= pair["shift_difference"]["ci_high"]


def test_it_has_a_section_of_the_report(ran):
    page = (ran[0] / "report.html").read_text(encoding="utf-8")
    (section,) = re.findall(r'<section id="shift">.*?</section>', page, re.DOTALL)
    assert "<svg" in section
    assert "shift_ci_high" in section


def test_a_probe_that_cannot_be_used_breaks_no_other_command(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from lsm_probe import Measurement\n"
        "def measure(checkpoint, samples, *, limit=3, **options): ...\n"
        "def named(name, measure): return Measurement(name=name, help='H.', measure=measure, result='none:None')\n"
        "nowhere, taken = named('nowhere', 'no.where:at'), named('taken', measure)\n"
        "other = named('attention', measure)\n"
    )
    about = tmp_path / "broken-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    probes = ("nowhere", "taken", "other", "gone")
    lines = "".join(f"{name} = broken:{name}\n" for name in probes)
    (about / "entry_points.txt").write_text(f"[lsm_probe.probes]\n{lines}")
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(commands=[["--version"], ["attention", "--help"], ["--help"]])],
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PATH": "/usr/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("warning: the probe ") for line in done.stderr.splitlines())
    assert {name for name in probes if f"'{name}'" in done.stderr} == set(probes)
    assert "every command has an option 'limit'" in done.stderr
