"""Execute each notebook of this folder and write `NAME.ipynb` beside its source `NAME.py`.

    python analyses/notebooks/execute.py              # all of them
    python analyses/notebooks/execute.py samples      # some

Needs the extra `notebooks`. The output contains no progress bars and no details of the machine.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def sources() -> list[Path]:
    """The notebooks of this folder."""
    return [path for path in sorted(HERE.glob("*.py")) if path.read_text(encoding="utf-8").startswith("# ---\n")]


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs."""
    notebook = jupytext.read(source)
    with TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=3_600,
            startup_timeout=180,
            record_timing=False,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        ).execute()
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell["id"], cell["metadata"] = f"{source.stem}-{number}".replace("_", "-"), {}
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if not is_log_of_torch(output)]
    return notebook


def is_log_of_torch(output: nbformat.NotebookNode) -> bool:
    """Whether it is a line that torch or torchao writes when it is imported."""
    return output.get("name") == "stderr" and ("torch/" in output["text"] or "torchao/" in output["text"])


def main() -> None:
    os.environ |= {
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # a warning of tqdm about missing widgets
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    chosen = [path for path in sources() if path.stem in (sys.argv[1:] or [path.stem])]
    for source in chosen:
        target = source.with_suffix(".ipynb")
        nbformat.write(execute(source), target)
        print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
