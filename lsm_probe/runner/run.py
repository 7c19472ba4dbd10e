"""A probe's run over one or several checkpoints: folders, resuming, controls, comparison."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar

from lsm_probe.data.sample import Sample
from lsm_probe.distributed import all_gather_or_raise, is_main_rank, on_all_ranks
from lsm_probe.errors import InputError
from lsm_probe.files import plain_name, short_enough
from lsm_probe.folders import alone_in
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.loading import load, look_up
from lsm_probe.probes.attention.controls import CONTROL, Control
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.prepared_samples import check_source
from lsm_probe.runner.result import ProbeResult, write_json

OUTPUTS = ("result.json", "arrays.npz", "samples.jsonl", "masks.npz")
"""What a result leaves in its folder, pictures apart."""
RECORD = ".run.json"
"""Says which probe wrote to a folder, and into which folders below: what the next run may take away."""
_PROGRESS = "progress"
PREVIOUS = ".previous"
"""Keeps what a run takes the place of, of the last such run."""
OnProgress = Callable[[str, int, int], None]
Result = TypeVar("Result", bound=ProbeResult)


@on_all_ranks()
def run_probe(
    probe: Callable[..., Result],
    names: Sequence[str],
    samples: Sequence[Sample],
    out: Path,
    *,
    loading: dict[str, Any],
    probing: dict[str, Any],
    pictures: Sequence[str] = (),
    controls: Callable[[Sequence[Result], Sequence[Sample]], Iterator[Control]] = lambda results, samples: iter(()),
    loader: Callable[..., Checkpoint] = load,
    source_of: Callable[[str], Literal["speech", "text"] | None] = look_up,
    resume: bool = False,
    on_progress: OnProgress = lambda name, done, total: None,
) -> tuple[list[Result], dict[str, Any] | None]:
    """Probes checkpoints one after another on the same samples and writes everything into a folder.

    One checkpoint writes `result.json`, `arrays.npz` and `samples.jsonl` into `out`; several write them into a folder
    each and `comparison.json` beside. What an earlier run of the probe left there goes to `.previous`, with a warning.
    Under `torchrun` every process must call it; the main one writes.

    Args:
        probe: for example [`lsm_probe.attention`].
        names: what `loader` takes.
        samples: the samples.
        out: output folder.
        loading: keyword arguments of `loader`.
        probing: keyword arguments of `probe`.
        pictures: names of files that the caller will draw into `out`.
        controls: what must be probed once more before results can be compared, from the results so far.
        loader: gives the checkpoint of a name.
        source_of: says of a name what `loader` will read, without loading, or refuses the name; None if it cannot tell.
        resume: go on from an interrupted run in the same folder.
        on_progress: called with the checkpoint's name, samples done and samples in all.

    Returns:
        The results, controls last, and what `comparison.json` holds (None for a single result).

    Raises:
        InputError: if a checkpoint or sample cannot be used, another process writes to `out`, or another probe did.
    """
    if len(set(names)) < len(names):
        raise InputError(f"--ckpt names a checkpoint twice ({', '.join(names)}): name each once")
    check_names(names)
    # What is wrong with the last checkpoint should not wait until the others are probed.
    for name, source in [(name, source_of(name)) for name in names]:
        if source is not None:
            check_source(name, source, samples)
    with _writing(out, probe.__name__, pictures, resume) as earlier:
        folders = _Folders()

        def measure(checkpoint: Checkpoint, chosen: Sequence[Sample], **changes: Any) -> Result:
            name, folder = checkpoint.name, folders.name(checkpoint.name)
            result = probe(
                checkpoint,
                chosen,
                progress_folder=out / _PROGRESS / folder,
                on_progress=lambda done, total=None: on_progress(name, done, total or len(chosen)),
                **{**probing, **changes},
            )
            if earlier is not None:
                earlier.set_aside()
                earlier.record(folder if len(names) > 1 else ".")
                result.save(out / folder if len(names) > 1 else out)
            return result

        def loaded(name: str) -> Checkpoint:
            on_progress(name, 0, len(samples))  # loading may take minutes
            return loader(name, **loading)

        results = [measure(loaded(name), samples) for name in names]
        # A list first: the controls are of the checkpoints alone, not of each other.
        for control in list(controls(results, samples)):
            results.append(measure(control.load(loading), control.samples, **control.probing))
        comparison = compare(results) if len(results) > 1 else None
        if comparison is not None and earlier is not None:
            write_json(out / "comparison.json", comparison)
    return results, comparison


def check_names(names: Sequence[str]) -> None:
    """Refuses names that no result could hold: a folder's may be bytes that are no Unicode text.

    Raises:
        InputError: one of them is.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"--ckpt {name!r} is not a name in UTF-8: rename the folder") from None


@contextmanager
def _writing(out: Path, probe: str, pictures: Sequence[str], resume: bool) -> Iterator[_Earlier | None]:
    """Holds the folder, in the main process; gives what an earlier run left there, in the others None.

    Those begin when the main one has the folder. All of them keep their finished batches in it.
    """
    if not is_main_rank():
        all_gather_or_raise(None)
        yield None
        return
    begun = resume and (out / _PROGRESS).exists()
    with alone_in(out), _progress(out, resume) as progress:
        earlier = _Earlier(out, probe, pictures, of_this_run=begun)
        all_gather_or_raise(None)
        yield earlier
        shutil.rmtree(progress, ignore_errors=True)


@contextmanager
def _progress(out: Path, resume: bool) -> Iterator[Path]:
    """The folder of finished batches. Without `resume` those of an earlier run go, but not for a run that is refused
    before it has made any itself."""
    progress, before = out / _PROGRESS, out / ".progress-before"
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


def slug(*names: str) -> str:
    """Names of checkpoints as one folder name, with `+` between them, of at most 200 bytes.

    Of a path it is the last part, without the characters folders dislike; letters of all scripts stay.

    `runs/vanilla/model`, as training writes it, is told from other models by the folder before.

    Args:
        names: as given on the command line, or of results.
    """
    parts = (part for name in names for part in name.split(" + "))
    return short_enough("+".join("-at-length-of-".join(map(_slug, part.split(CONTROL))) for part in parts))


def _slug(name: str) -> str:
    path = Path(name)
    last = f"{path.parent.name}-model" if path.name == "model" else path.name
    return plain_name(name if name.startswith("builtin:") else last or "checkpoint").strip("-.") or "checkpoint"


class _Earlier:
    """What an earlier run left in the output folder; it goes when the first new result is there to take its place.

    Args:
        out: the output folder.
        probe: name of the probe that now writes to it.
        pictures: names of the pictures it draws.
        of_this_run: it was this very run, interrupted: the same comes again.

    Raises:
        InputError: the folder holds files of another probe, or of no probe.
    """

    def __init__(self, out: Path, probe: str, pictures: Sequence[str], *, of_this_run: bool):
        self.out, self.probe, self.of_this_run = out, probe, of_this_run
        self.names = (*OUTPUTS, "comparison.json", *pictures)
        self.folders: list[str] = []
        wrote, folders = self._read()
        found = [name for name in self.names if (out / name).exists()]
        if wrote is None and found:
            raise InputError(f"{out} holds {found[0]}, which no probe wrote: give another folder with --out")
        if wrote not in (None, probe):
            raise InputError(f"{out} holds a result of the {wrote} probe: give another folder with --out")
        self.stale = [out / folder / name for folder in (".", *folders) for name in self.names]

    def set_aside(self) -> None:
        """Moves it to `PREVIOUS`, once, with a warning."""
        found = [path for path in self.stale if path.exists()]
        if found and not self.of_this_run:
            self._keep(found)
        for path in self.stale:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in self.stale} - {self.out}:
            with suppress(OSError):  # not there, or something else is in it
                folder.rmdir()
        self.stale = []

    def _keep(self, found: Sequence[Path]) -> None:
        previous = self.out / PREVIOUS
        shutil.rmtree(previous, ignore_errors=True)
        for path in found:
            kept = previous / path.relative_to(self.out)
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.rename(kept)
        warnings.warn(f"{self.out} held the results of an earlier run, which are in {previous} now", stacklevel=2)

    def record(self, folder: str) -> None:
        """Notes that a result is about to be written into a folder below."""
        self.folders.append(folder)
        write_json(self.out / RECORD, {"probe": self.probe, "folders": self.folders})

    def _read(self) -> tuple[str | None, list[str]]:
        """Which probe wrote last, and into which folders; `(None, [])` if none did."""
        for path in (self.out / RECORD, self.out / "result.json", self.out / "comparison.json"):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                probe = content.get("probe") or content["schema"].split("/")[1]
                return str(probe), [Path(folder).name for folder in content.get("folders", []) if folder != "."]
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue
        return None, []


class _Folders:
    """Gives each checkpoint a folder name of its own, also where two paths end alike."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def name(self, checkpoint: str) -> str:
        plain = slug(checkpoint)
        candidates = (plain if i == 1 else f"{plain}-{i}" for i in count(1))
        # Some file systems take a and A for one name.
        chosen = next(c for c in candidates if c.casefold() not in self._taken)
        self._taken.add(chosen.casefold())
        return chosen
