"""The report as an executed notebook, for further analysis; it reads the same folders with the public API."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, PackageLoader, StrictUndefined

from lsm_probe.errors import InputError, WorkFailed
from lsm_probe.extras import install_command
from lsm_probe.files import replacing
from lsm_probe.reports.collection import Results

NEEDS = ("jupytext", "nbformat", "nbclient", "ipykernel")
_CELL_SECONDS, _START_SECONDS = 1_800, 180
"""Time limits for a cell, and for the start of the kernel on a busy machine."""


def missing() -> list[str]:
    """The packages that a notebook needs and that are not installed."""
    return [package for package in NEEDS if find_spec(package) is None]


def notebook_source(results: Results, folder: Path) -> str:
    """The notebook in jupytext's percent format; paths are relative to `folder`, its own folder."""
    environment = Environment(
        loader=PackageLoader("lsm_probe", "reports"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folders = [os.path.relpath(path.resolve(), folder.resolve()) for path in results.folders]
    # A list of strings looks the same in Python.
    return environment.get_template("notebook.py.j2").render(
        results=results, folders=repr(folders), filled=[name for name, group in results.groups.items() if group]
    )


def save_notebook(results: Results, path: Path) -> None:
    """Writes the notebook with its outputs.

    Raises:
        InputError: packages are missing.
        WorkFailed: a cell or the kernel failed; the notebook is not written.
    """
    if absent := missing():
        raise InputError(f"a notebook needs {', '.join(absent)}, not installed: {install_command('notebooks')}")
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = jupytext.reads(notebook_source(results, path.parent), fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    client = NotebookClient(
        notebook,
        timeout=_CELL_SECONDS,
        startup_timeout=_START_SECONDS,
        resources={"metadata": {"path": str(path.parent)}},
    )
    with TemporaryDirectory() as sockets:
        manager = client.create_kernel_manager()
        # Sockets as files of this user, because other users of this machine could connect to ports.
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        try:
            client.execute()
        except CellExecutionError as error:
            raise WorkFailed(f"the notebook of the report failed: {error.ename}: {error.evalue}") from error
        except (CellTimeoutError, DeadKernelError, RuntimeError) as error:
            raise WorkFailed(f"the notebook's kernel failed: {' '.join(str(error).split())}") from error
    with replacing(path) as temporary:
        nbformat.write(notebook, temporary)
