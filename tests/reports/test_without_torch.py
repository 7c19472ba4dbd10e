"""What reads saved results and runs no model imports neither torch nor transformers, which take seconds."""

import subprocess
import sys

CODE = """
import shutil, sys
import lsm_probe.regression.paired
from lsm_probe import cli, compare, read_results

def imported():
    return sorted({"torch", "transformers", "accelerate", "peft"} & sys.modules.keys())

runs, out, *folders = sys.argv[1:]
baseline = shutil.copytree(f"{runs}/attention/llm", f"{out}/baseline")
for arguments in (
    ("check", "--baseline", baseline, "--current", f"{runs}/attention/llm"),
    ("report", *folders, "--out", f"{out}/report.html", "--no-notebook"),
    ("figure", "figure3", f"{runs}/attention", "--out", f"{out}/figures"),
    ("score", f"{runs}/evaluate/llm", f"{runs}/evaluate/lsm", "--out", f"{out}/scored"),
):
    sys.argv = ["lsm-probe", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        print(arguments[0], end.code or 0, imported())
results = read_results([f"{runs}/attention"])
compare(results.attention)
print("Python", imported())
"""


def test_commands_that_only_read_results_import_no_torch(runs, tmp_path):
    folders = [path for path in runs.iterdir() if path.is_dir()]
    done = subprocess.run([sys.executable, "-c", CODE, runs, tmp_path, *folders], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.endswith("]")]
    assert lines == [f"{name} 0 []" for name in ("check", "report", "figure", "score")] + ["Python []"], done.stderr
    assert {"attention", "importance", "evaluate", "timeline"} <= {folder.name for folder in folders}
    assert (tmp_path / "report.html").stat().st_size > 100_000
