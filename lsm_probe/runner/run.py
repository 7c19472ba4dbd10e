"""Runs a measurement of checkpoints and writes it into a folder: resuming, controls, comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lsm_probe.data.sample import Sample
from lsm_probe.distributed import on_all_ranks
from lsm_probe.errors import InputError
from lsm_probe.progress import notebook_progress
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.options import steps
from lsm_probe.runner.output_folder import PROGRESS, FolderNames, folder_name, output_folder, result_folder
from lsm_probe.runner.result import MeasurementResult, write_json
from lsm_probe.runner.sample_keys import SOURCE_KEYS, check_key

OnProgress = Callable[[str, int, int], None]
Source = Literal["speech", "text"]


@dataclass(frozen=True)
class ToMeasure:
    """A checkpoint that a run will load.

    Attributes:
        name: the user's name for it.
        load: returns the measurement's input, usually a [`Checkpoint`].
        look_up: returns its source without loading it, or None if the name alone does not determine it; it may raise.
        made_of: names of the checkpoints that it is composed of.
    """

    name: str
    load: Callable[[], Any]
    look_up: Callable[[], Source | None] = lambda: None
    made_of: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the checkpoints that it is composed of; its own name if it is not composed."""
        return self.made_of or (self.name,)


@on_all_ranks()
def run_measurement(
    measurement: Measurement,
    checkpoints: Sequence[ToMeasure],
    samples: Sequence[Sample],
    out: Path,
    *,
    options: dict[str, Any],
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[list[MeasurementResult], dict[str, Any] | None]:
    """Measure checkpoints one after another on the same samples, and write everything into a folder.

    One checkpoint writes `result.json`, `arrays.npz` and `samples.jsonl` into `out`. Several checkpoints write them
    into a folder each, with `comparison.json` beside these folders. Results of an earlier run are moved to `.previous`,
    with a warning. Under `torchrun` every process must call this function; only the main process writes.

    Args:
        measurement: the measurement.
        checkpoints: the checkpoints to measure.
        samples: the samples to measure them on.
        out: output folder.
        options: keyword arguments of the measurement.
        resume: continue an interrupted run in the same folder.
        on_progress: called with the checkpoint's name, samples done and samples in all, where those that
            `verify_precision` repeats count twice; by default only notebooks show bars.

    Returns:
        The results, controls last, and the content of `comparison.json` (None for a single result).

    Raises:
        InputError: a checkpoint or sample cannot be used, another process writes to `out`, or `out` holds the results
            of another measurement.
    """
    names = [checkpoint.name for checkpoint in checkpoints]
    check_names(names)
    # Check all checkpoints first, so that a problem with the last one appears before the others are measured.
    for name, source in [(checkpoint.name, checkpoint.look_up()) for checkpoint in checkpoints]:
        if source is not None:
            check_key(SOURCE_KEYS[source], name, samples)
    measure, of = measurement.get("measure"), {checkpoint.name: checkpoint for checkpoint in checkpoints}
    several, folders, progress_names = len(checkpoints) > 1, FolderNames(), FolderNames()
    with (
        output_folder(out, measurement.name, measurement.picture_names(), resume=resume) as folder,
        notebook_progress(on_progress) as show,
    ):

        def measured(checkpoint: str, name: str, chosen: Sequence[Sample], **changes: Any) -> MeasurementResult:
            total = steps(len(chosen), options.get("verify_precision", 0))
            show(name, 0, total)  # loading may take minutes
            result: MeasurementResult = measure(
                of[checkpoint].load(),
                chosen,
                progress_folder=out / PROGRESS / progress_names.take(folder_name(name)),
                on_progress=lambda done, total=total: show(name, done, total),
                **{**options, **changes},
            )
            if folder is not None:
                below = folders.take(result_folder(result.checkpoint)) if several else "."
                folder.set_aside()
                folder.record(below)
                result.save(out / below)
            return result

        results = [measured(name, name, samples) for name in names]
        # Copied to a list, because controls are made only for the checkpoints, not for other controls.
        for control in list(measurement.make_controls(results, samples)):
            results.append(measured(control.checkpoint, control.name, control.samples, **control.options))
        comparison = compare(results) if several else None
        if comparison is not None and folder is not None:
            write_json(out / "comparison.json", comparison)
    return results, comparison


def check_names(names: Sequence[str]) -> None:
    """Refuse names that cannot distinguish results, or that cannot be stored.

    Raises:
        InputError: a name is given twice, or is not Unicode text (a folder name may be any bytes).
    """
    if len(set(names)) < len(names):
        raise InputError(f"--ckpt names a checkpoint twice ({', '.join(names)}): name each once")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"--ckpt {name!r} is not a name in UTF-8: rename the folder") from None
