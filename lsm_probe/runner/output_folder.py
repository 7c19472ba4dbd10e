"""Output folders of a run: what is written, what an earlier run left there, and how folders are named."""

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
"""What a result leaves in its folder, pictures apart."""
RECORD = ".run.json"
"""Says which measurement wrote to a folder, and into which folders below: what the next run may set aside."""
PREVIOUS = ".previous"
"""Keeps the results of the run before this one."""
PROGRESS = "progress"
"""Holds the finished batches of a run that goes on."""


@contextmanager
def output_folder(
    out: Path, measurement: str, pictures: Sequence[str], *, resume: bool
) -> Iterator[OutputFolder | None]:
    """Hold the folder in the main process; in the others give None.

    The other processes begin when the main one has the folder. All of them keep their finished batches in it.
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
    """The folder of finished batches. Without `resume` those of an earlier run are deleted, but not by a run that is
    refused before it has finished a batch itself."""
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
    """The output folder of a run. What an earlier run left there is set aside when the first new result is there.

    Args:
        out: the folder.
        measurement: name of the measurement that now writes to it.
        pictures: names of the pictures it draws.
        of_this_run: whether the earlier run was this one, interrupted.

    Raises:
        InputError: the folder holds files of another measurement, or of none.
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
        """Move what an earlier run left to `PREVIOUS`, once, with a warning."""
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
            with suppress(OSError):  # not there, or something else is in it
                folder.rmdir()
        self.stale = []

    def record(self, folder: str) -> None:
        """Note that a result is about to be written into a folder below."""
        self.folders.append(folder)
        write_json(self.out / RECORD, {"probe": self.measurement, "folders": self.folders})

    def _read(self) -> tuple[str | None, list[str]]:
        """Which measurement wrote last, and into which folders; `(None, [])` if none did."""
        for path in (self.out / RECORD, self.out / "result.json", self.out / "comparison.json"):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                probe = content.get("probe") or content["schema"].split("/")[1]
                return str(probe), [Path(folder).name for folder in content.get("folders", []) if folder != "."]
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue
        return None, []


class FolderNames:
    """Gives each result a folder name of its own, also where two checkpoints have the same."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, plain: str) -> str:
        """The name itself, or with a number after it where it is taken."""
        candidates = (plain if i == 1 else f"{plain}-{i}" for i in count(1))
        # Some file systems take a and A for one name.
        chosen = next(c for c in candidates if c.casefold() not in self._taken)
        self._taken.add(chosen.casefold())
        return chosen


def folder_name(*checkpoints: str) -> str:
    """A folder name for checkpoints, with `+` between them, of at most 200 bytes.

    Of a path it is the last part, without characters that file systems dislike; letters of all scripts stay. For
    `runs/vanilla/model`, as training writes it, it is `vanilla-model`.

    Args:
        checkpoints: names as given on the command line.
    """
    return short_enough("+".join(map(_plain, checkpoints)))


def result_folder(checkpoint: CheckpointIdentity) -> str:
    """The folder name of a result; a control's names the text LLM and the checkpoint whose source lengths it has."""
    control = checkpoint.control
    return folder_name(*checkpoint.parts) if control is None else control_folder(control)


def control_folder(control: Control) -> str:
    """The folder name of a length-matched control."""
    return short_enough("-at-length-of-".join(map(_plain, (control.control_of, *control.source_length_of[:1]))))


def _plain(name: str) -> str:
    path = Path(name)
    last = f"{path.parent.name}-model" if path.name == "model" else path.name
    return plain_name(name if name.startswith("builtin:") else last or "checkpoint").strip("-.") or "checkpoint"
