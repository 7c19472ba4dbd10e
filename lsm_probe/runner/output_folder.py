"""Output folders of a run: their files, results of an earlier run, and folder names."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from lsm_probe.distributed import all_gather_or_raise, is_main_rank
from lsm_probe.errors import InputError
from lsm_probe.files import plain_name, short_enough
from lsm_probe.folders import alone_in
from lsm_probe.runner.identity import CheckpointIdentity, Control
from lsm_probe.runner.result import write_json

OUTPUTS = ("result.json", "arrays.npz", "samples.jsonl", "masks.npz")
"""The files of a result in its folder, except pictures."""
RECORD = ".run.json"
"""Records which measurement wrote to a folder, and into which subfolders: the next run may move these away."""
PREVIOUS = ".previous"
"""Contains the results of the previous run."""
PROGRESS = "progress"
"""Contains the finished batches of an unfinished run."""


@contextmanager
def output_folder(
    out: Path, measurement: str, pictures: Sequence[str], *, resume: bool
) -> Iterator[OutputFolder | None]:
    """Lock the folder in the main process and yield it there; yield None in the other processes.

    The other processes start when the main process has the folder. All of them keep their finished batches in it.
    """
    if not is_main_rank():
        all_gather_or_raise(None)
        yield None
        return
    begun = resume and (out / PROGRESS).exists()
    with alone_in(out), _progress(out, resume) as progress:
        folder = OutputFolder(out, measurement, pictures, of_this_run=begun)
        all_gather_or_raise(None)
        yield folder
        shutil.rmtree(progress, ignore_errors=True)


@contextmanager
def _progress(out: Path, resume: bool) -> Iterator[Path]:
    """The folder of finished batches. Without `resume`, batches of an earlier run are deleted once this run has
    finished a batch itself; a run that is refused before that deletes nothing."""
    progress, before = out / PROGRESS, out / ".progress-before"
    if progress.exists() and not resume:
        shutil.rmtree(before, ignore_errors=True)
        progress.rename(before)
    try:
        yield progress
    except InputError:
        if before.exists() and not progress.exists():
            before.rename(progress)
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)


class OutputFolder:
    """The output folder of a run. Results of an earlier run are moved away when the first new result is ready.

    Args:
        out: the folder.
        measurement: name of the measurement that now writes to it.
        pictures: file names of its pictures.
        of_this_run: whether the earlier run was the same run, interrupted.

    Raises:
        InputError: the folder holds files that are not results of this measurement.
    """

    def __init__(self, out: Path, measurement: str, pictures: Sequence[str], *, of_this_run: bool):
        self.out, self.measurement, self.of_this_run = out, measurement, of_this_run
        self.names = (*OUTPUTS, "comparison.json", *pictures)
        self.folders: list[str] = []
        wrote, folders = self._read()
        found = [name for name in self.names if (out / name).exists()]
        if wrote is None and found:
            raise InputError(f"{out} holds {found[0]}, which lsm-probe did not write: give another folder with --out")
        if wrote is not None and wrote.replace("_", "-") != measurement.replace("_", "-"):
            raise InputError(f"{out} holds a result of `lsm-probe {wrote}`: give another folder with --out")
        self.stale = [out / folder / name for folder in (".", *folders) for name in self.names]

    def set_aside(self) -> None:
        """Move the results of an earlier run to `PREVIOUS`, once, with a warning."""
        found = [path for path in self.stale if path.exists()]
        if found and not self.of_this_run:
            previous = self.out / PREVIOUS
            shutil.rmtree(previous, ignore_errors=True)
            for path in found:
                kept = previous / path.relative_to(self.out)
                kept.parent.mkdir(parents=True, exist_ok=True)
                path.rename(kept)
            warnings.warn(f"{self.out} held the results of an earlier run, which are in {previous} now", stacklevel=2)
        for path in self.stale:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in self.stale} - {self.out}:
            with suppress(OSError):  # the folder does not exist, or has other content
                folder.rmdir()
        self.stale = []

    def record(self, folder: str) -> None:
        """Record that a result is about to be written into a subfolder."""
        self.folders.append(folder)
        write_json(self.out / RECORD, {"probe": self.measurement, "folders": self.folders})

    def _read(self) -> tuple[str | None, list[str]]:
        """Which measurement wrote last, and into which subfolders; `(None, [])` if none did."""
        for path in (self.out / RECORD, self.out / "result.json", self.out / "comparison.json"):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                probe = content.get("probe") or content["schema"].split("/")[1]
                return str(probe), [Path(folder).name for folder in content.get("folders", []) if folder != "."]
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue
        return None, []


class FolderNames:
    """Gives each result its own folder name, even if two checkpoints have the same name."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, plain: str) -> str:
        """The name itself, or the name with a number if it is already taken."""
        candidates = (plain if i == 1 else f"{plain}-{i}" for i in count(1))
        # Some file systems do not distinguish a and A.
        chosen = next(c for c in candidates if c.casefold() not in self._taken)
        self._taken.add(chosen.casefold())
        return chosen


def folder_name(*checkpoints: str) -> str:
    """A folder name for checkpoints, with `+` between them, of at most 200 bytes.

    For a path, it is the last part, without characters that file systems reject; letters of all scripts are kept.
    `runs/vanilla/model`, a path that training writes, becomes `vanilla-model`.

    Args:
        checkpoints: names from the command line.
    """
    return short_enough("+".join(map(_plain, checkpoints)))


def result_folder(checkpoint: CheckpointIdentity) -> str:
    """The folder name of a result; for a control it names the text LLM and the checkpoint whose source lengths it
    uses."""
    control = checkpoint.control
    return folder_name(*checkpoint.parts) if control is None else control_folder(control)


def control_folder(control: Control) -> str:
    """The folder name of a length-matched control."""
    return short_enough("-at-length-of-".join(map(_plain, (control.control_of, *control.source_length_of[:1]))))


def _plain(name: str) -> str:
    path = Path(name)
    last = f"{path.parent.name}-model" if path.name == "model" else path.name
    return plain_name(name if name.startswith("builtin:") else last or "checkpoint").strip("-.") or "checkpoint"
