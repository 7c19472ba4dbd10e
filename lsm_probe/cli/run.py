"""Runs a measurement and shows what came out: progress on stderr, table or JSON on stdout, pictures."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lsm_probe.cli.progress import OnProgress, progress, quiet_transformers
from lsm_probe.cli.stopping import stoppable
from lsm_probe.console import text_console
from lsm_probe.data.manifest import describe_data, read_manifest
from lsm_probe.data.problems import OnError
from lsm_probe.data.sample import Sample
from lsm_probe.distributed import init_distributed, is_distributed, is_main_rank, on_all_ranks
from lsm_probe.files import check_can_write
from lsm_probe.models.checkpoint_names import may_be_on_hub
from lsm_probe.runner.measurement import Measurement
from lsm_probe.runner.output_folder import OUTPUTS, folder_name
from lsm_probe.runner.picture_files import report_drawing_failure
from lsm_probe.runner.result import MeasurementResult
from lsm_probe.runner.run import ToMeasure, run_measurement
from lsm_probe.runner.tables import thinking_note

Samples = tuple[list[Sample], dict[str, Any]]
"""Samples, and the keyword arguments of the measurement that describe them."""


def read_samples(data: str, limit: int | None, on_error: OnError) -> Samples:
    """The first samples of a manifest, and their identity."""
    samples = read_manifest(data, on_error=on_error)[:limit]
    return samples, {"data": describe_data(samples, data if data.startswith("builtin:") else Path(data).name)}


def start(out: Path, checkpoints: Sequence[str], read: Callable[[], Samples]) -> Samples:
    """What every command that measures begins with, in each of several processes; the main one alone warns.

    Args:
        out: output folder, which must be writable.
        checkpoints: their names; says which are looked for on the model hub.
        read: gives the samples.
    """
    if "transformers" in sys.modules:  # commands that load no model do without its import
        quiet_transformers()
    if is_distributed():
        init_distributed(cpu=True)  # each takes its GPU as it loads; nothing is sent between GPUs
    with on_all_ranks(), warnings.catch_warnings():
        if not is_main_rank():
            warnings.simplefilter("ignore")
        check_can_write("--out", out, folder=True)
        samples = read()
    for name in checkpoints if is_main_rank() else ():
        if may_be_on_hub(name):  # which takes half a minute to find that it cannot be reached
            print(f"{name} is not a local folder: looking for it on the model hub", file=sys.stderr)
    return samples


def progress_on_main() -> AbstractContextManager[OnProgress]:
    """A progress bar, shown by the main process alone."""
    return progress() if is_main_rank() else nullcontext(lambda *_: None)


def run_and_show(
    measurement: Measurement,
    checkpoints: Sequence[ToMeasure],
    read: Callable[[], Samples],
    out: Path | None,
    *,
    options: dict[str, Any],
    responses: Path | None = None,
    resume: bool = False,
    as_json: bool = False,
    finish: Callable[[Sequence[Any]], None] | None = None,
) -> None:
    """Measure checkpoints and show the results; of several processes the main one writes, warns and prints.

    Args:
        measurement, checkpoints, options, resume: as in [`run_measurement`].
        read: gives the samples.
        out: output folder; by default `runs/MEASUREMENT/CHECKPOINTS`.
        responses: result folder whose responses are used instead of generating.
        as_json: print JSON instead of a table.
        finish: called with the results when they are stored.
    """
    out = out or Path("runs") / measurement.name / folder_name(*(part for c in checkpoints for part in c.parts))
    samples, about = start(out, [checkpoint.name for checkpoint in checkpoints], read)
    given = {}
    if responses is not None:
        from lsm_probe.runner.prepared_samples import read_responses

        with on_all_ranks():
            given = {"responses": read_responses(responses)}
    with stoppable(), progress_on_main() as on_progress:
        results, comparison = run_measurement(
            measurement,
            checkpoints,
            samples,
            out,
            options={**options, **about, **given},
            resume=resume,
            on_progress=on_progress,
        )
    with on_all_ranks():
        if is_main_rank():
            try:
                if finish is not None:
                    finish(results)
                with report_drawing_failure(out):
                    measurement.save_pictures(results, out)
            finally:
                _print(measurement, results, comparison, out, as_json)


def _print(
    measurement: Measurement,
    results: Sequence[MeasurementResult],
    comparison: dict[str, Any] | None,
    out: Path,
    as_json: bool,
) -> None:
    if as_json:
        print(json.dumps({"results": [r.to_dict() for r in results], "comparison": comparison}, ensure_ascii=False))
        return
    console = text_console()
    console.print(measurement.make_table(results).to_rich())
    for result in results:
        left_out = sum(len(ids) for ids in result.excluded.values())
        console.print(
            f"{result.name}: {result.counted}, {left_out} left out{measurement.make_note(result)}",
            highlight=False,
        )
        if precision := result.precision_note():
            console.print(f"{result.name}: {precision}", highlight=False)
        if thinking := thinking_note(result):
            print(f"warning: {result.name}: {thinking}", file=sys.stderr)
    for warning in _warnings(comparison["pairs"] if comparison else [], results):
        print(f"warning: {warning}", file=sys.stderr)
    kept = OUTPUTS if len(results) == 1 else ("comparison.json",)
    written = [name for name in (*kept, *measurement.picture_names()) if (out / name).exists()]
    apart = "" if len(results) == 1 else f", and a folder for each of {len(results)} results"
    console.print(f"written to {out}: {', '.join(written)}{apart}")


def _warnings(pairs: Sequence[dict[str, Any]], results: Sequence[MeasurementResult]) -> list[str]:
    """One for each kind: that of the first pair, and how many others have the same."""
    control_of = {result.name: result.checkpoint.control and result.checkpoint.control.control_of for result in results}
    kinds: dict[str, list[str]] = {}
    for pair in pairs:
        if pair["warning"] and control_of[pair["second"]] != pair["first"]:
            kind = pair["warning"].replace(pair["first"], "").replace(pair["second"], "")
            kinds.setdefault(kind, []).append(pair["warning"])
    return [
        alike[0] + (f" (the same of {len(alike) - 1} more pairs, see comparison.json)" if len(alike) > 1 else "")
        for alike in kinds.values()
    ]
