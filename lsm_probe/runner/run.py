"""A measurement of one or several checkpoints, written into a folder: resuming, controls, comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lsm_probe.data.sample import Sample
from lsm_probe.distributed import on_all_ranks
from lsm_probe.errors import InputError
from lsm_probe.models.adapters import CONFIG, is_adapter
from lsm_probe.models.checkpoint_names import may_be_on_hub
from lsm_probe.models.loading import load
from lsm_probe.models.lookup import look_up
from lsm_probe.models.published import PARTS, Parts
from lsm_probe.models.resolve import check_parts, used_parts
from lsm_probe.progress import notebook_progress
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.output_folder import PROGRESS, FolderNames, folder_name, output_folder, result_folder
from lsm_probe.runner.prepared_samples import SOURCE_KEYS, check_key
from lsm_probe.runner.result import MeasurementResult, write_json

OnProgress = Callable[[str, int, int], None]
Source = Literal["speech", "text"]


@dataclass(frozen=True)
class ToMeasure:
    """A checkpoint that a run will load.

    Attributes:
        name: what the user called it.
        load: gives what the measurement takes, a [`Checkpoint`] as a rule.
        look_up: returns its source without loading it, None if the name alone does not determine it, or raises.
        made_of: names of the checkpoints that it is put together from.
    """

    name: str
    load: Callable[[], Any]
    look_up: Callable[[], Source | None] = lambda: None
    made_of: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the checkpoints that it is put together from; its own where it is not."""
        return self.made_of or (self.name,)


def loading_for(name: str, loading: Mapping[str, Any]) -> dict[str, Any]:
    """Of keyword arguments of [`load`] that are for several checkpoints, those for one: parts only if it lacks them."""
    used = used_parts(name, _parts(loading), loading.get("base"))
    return {key: value for key, value in loading.items() if key not in PARTS or getattr(used, key) is not None}


def _parts(loading: Mapping[str, Any]) -> Parts:
    return Parts(**{part: loading.get(part) for part in PARTS})


def named_checkpoints(
    names: Sequence[str], loading: dict[str, Any], *, base: str | None = None, source: Source | None = None
) -> list[ToMeasure]:
    """Checkpoints by their names.

    Args:
        names, loading, source: as of [`named_checkpoint`].
        base: the model that the adapters among them were trained on; None: the one that each names.

    Raises:
        InputError: a base is given and none of them is an adapter, or a part and none of them leaves it out.
    """
    adapters = [name for name in names if is_adapter(name)] or [name for name in names if may_be_on_hub(name)]
    if base is not None and not adapters:
        raise InputError(f"--base {base} has no use: {', '.join(names)} is no adapter (a folder with {CONFIG})")
    check_parts({name: base if name in adapters else None for name in names}, _parts(loading))
    with_base = {**loading, "base": base}
    return [named_checkpoint(name, with_base if name in adapters else loading, source=source) for name in names]


def named_checkpoint(name: str, loading: dict[str, Any], *, source: Source | None = None) -> ToMeasure:
    """A checkpoint by its name.

    Args:
        name: as [`load`] takes it.
        loading: keyword arguments of [`load`], for several checkpoints.
        source: what it is given, where that is not what it reads by itself.
    """

    def find_source() -> Source | None:
        found = look_up(name, base=loading.get("base"))  # refuses an unknown name, whatever the source
        return source or found

    return ToMeasure(name, lambda: load(name, **loading_for(name, loading)), find_source)


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

    One checkpoint writes `result.json`, `arrays.npz` and `samples.jsonl` into `out`; several write them into a folder
    each and `comparison.json` beside these. What an earlier run left there is moved to `.previous`, with a warning.
    Under `torchrun` every process must call it; the main one writes.

    Args:
        measurement: the measurement.
        checkpoints: the checkpoints to measure.
        samples: the samples to measure them on.
        out: output folder.
        options: keyword arguments of the measurement.
        resume: continue an interrupted run in the same folder.
        on_progress: called with the checkpoint's name, samples done and samples in all; by default a notebook shows
            bars, and nothing else does.

    Returns:
        The results, controls last, and what `comparison.json` holds (None for a single result).

    Raises:
        InputError: a checkpoint or sample cannot be used, another process writes to `out`, or it holds the results of
            another measurement.
    """
    names = [checkpoint.name for checkpoint in checkpoints]
    check_names(names)
    # What is wrong with the last checkpoint should not wait until the others are measured.
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
            show(name, 0, len(chosen))  # loading may take minutes
            result: MeasurementResult = measure(
                of[checkpoint].load(),
                chosen,
                progress_folder=out / PROGRESS / progress_names.take(folder_name(name)),
                on_progress=lambda done, total=None: show(name, done, total or len(chosen)),
                **{**options, **changes},
            )
            if folder is not None:
                below = folders.take(result_folder(result.checkpoint)) if several else "."
                folder.set_aside()
                folder.record(below)
                result.save(out / below)
            return result

        results = [measured(name, name, samples) for name in names]
        # A list first: the controls are of the checkpoints alone, not of each other.
        for control in list(measurement.make_controls(results, samples)):
            results.append(measured(control.checkpoint, control.name, control.samples, **control.options))
        comparison = compare(results) if several else None
        if comparison is not None and folder is not None:
            write_json(out / "comparison.json", comparison)
    return results, comparison


def check_names(names: Sequence[str]) -> None:
    """Refuse names that results could not be distinguished by, or could not store.

    Raises:
        InputError: a name is given twice, or is no Unicode text (a folder's may be any bytes).
    """
    if len(set(names)) < len(names):
        raise InputError(f"--ckpt names a checkpoint twice ({', '.join(names)}): name each once")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"--ckpt {name!r} is not a name in UTF-8: rename the folder") from None
