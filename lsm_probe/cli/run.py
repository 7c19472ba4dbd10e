"""What the commands of all probes have in common: progress on stderr, table or JSON on stdout, pictures."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lsm_probe.cli.progress import progress, quiet_transformers
from lsm_probe.cli.stopping import stoppable
from lsm_probe.console import text_console
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.sample import Sample
from lsm_probe.distributed import init_distributed, is_distributed, is_main_rank, on_all_ranks
from lsm_probe.files import check_can_write
from lsm_probe.models.checkpoint_names import may_be_the_hubs
from lsm_probe.probes.attention.controls import CONTROL
from lsm_probe.runner.picture_files import report_drawing_failure
from lsm_probe.runner.prepared_samples import describe_data, read_responses
from lsm_probe.runner.result import ProbeResult
from lsm_probe.runner.run import OUTPUTS, run_probe, slug
from lsm_probe.runner.tables import thinking_note

Result = TypeVar("Result", bound=ProbeResult)
Read = TypeVar("Read")


@dataclass(frozen=True)
class View(Generic[Result]):
    """How the results of a probe are shown.

    Attributes:
        table: what is printed of them, for rich.
        note: one line about each result.
        draw: draws them into a folder. Not `save`, which nnsight gives to every object, as a default of the field.
        pictures: the files that `draw` writes.
    """

    table: Callable[[Sequence[Result]], Any]
    note: Callable[[Result], str]
    draw: Callable[[Sequence[Result], Path], None]
    pictures: Sequence[str]


def probe_and_report(
    probe: Callable[..., Result],
    view: View[Result],
    names: Sequence[str],
    data: str,
    out: Path | None,
    *,
    probing: dict[str, Any],
    limit: int | None = None,
    **options: Any,
) -> list[Result]:
    """Runs a probe on checkpoints and the samples of a manifest; see [`measure_and_report`]."""

    def read() -> tuple[list[Sample], dict[str, Any]]:
        samples = read_manifest(data, on_error=probing.get("on_error", "fail"))[:limit]
        return samples, {"data": describe_data(samples, data if data.startswith("builtin:") else Path(data).name)}

    return measure_and_report(probe, view, names, read, out, probing=probing, **options)


def measure_and_report(
    probe: Callable[..., Result],
    view: View[Result],
    names: Sequence[str],
    read: Callable[[], tuple[list[Sample], dict[str, Any]]],
    out: Path | None,
    *,
    command: str,
    loading: dict[str, Any],
    probing: dict[str, Any],
    responses: Path | None = None,
    resume: bool = False,
    as_json: bool = False,
    **running: Any,
) -> list[Result]:
    """Runs a probe on checkpoints and shows what came out; `running` goes to [`run_probe`].

    Of several processes the main one writes and speaks.

    Args:
        read: gives the samples, and the keyword arguments of the probe that tell of them.
        probing: the other keyword arguments of the probe.
    """
    quiet_transformers()
    out = out or Path("runs") / command / slug(*names)
    if is_distributed():
        init_distributed(cpu=True)  # each takes its GPU as it loads; nothing is sent between GPUs
    with on_all_ranks():
        check_can_write("--out", out, folder=True)
        samples, about = _silently(read)
        probing = {**probing, **about}
        if responses is not None:
            probing["responses"] = read_responses(responses)
    for name in names if is_main_rank() else ():
        if may_be_the_hubs(name):  # which takes half a minute to find that it cannot be reached
            print(f"{name} is no folder here: asking the model hub", file=sys.stderr)
    with stoppable(), progress() if is_main_rank() else nullcontext(lambda *_: None) as on_progress:
        results, comparison = run_probe(
            probe,
            names,
            samples,
            out,
            loading=loading,
            probing=probing,
            pictures=view.pictures,
            resume=resume,
            on_progress=on_progress,
            **running,
        )
    with on_all_ranks():
        if is_main_rank():
            _report(view, results, comparison, out, as_json)
    return results


def _silently(read: Callable[[], Read]) -> Read:
    """Of several processes, which all read the same, the main one alone warns."""
    with warnings.catch_warnings():
        if not is_main_rank():
            warnings.simplefilter("ignore")
        return read()


def _report(
    view: View[Result], results: Sequence[Result], comparison: dict[str, Any] | None, out: Path, as_json: bool
) -> None:
    try:
        with report_drawing_failure(out):
            view.draw(results, out)
    finally:
        if as_json:
            print(json.dumps({"results": [r.to_dict() for r in results], "comparison": comparison}, ensure_ascii=False))
        else:
            _show(view, results, comparison, out)


def _show(view: View[Result], results: Sequence[Result], comparison: dict[str, Any] | None, out: Path) -> None:
    console = text_console()
    console.print(view.table(results))
    for result in results:
        left_out = sum(len(ids) for ids in result.excluded.values())
        console.print(
            f"{result.name}: {result.counted}, {left_out} left out; {view.note(result)}",
            highlight=False,
        )
        if thinking := thinking_note(result):
            print(f"warning: {result.name}: {thinking}", file=sys.stderr)
    for warning in _warnings(comparison["pairs"] if comparison else []):
        print(f"warning: {warning}", file=sys.stderr)
    kept = OUTPUTS if len(results) == 1 else ("comparison.json",)
    written = [name for name in (*kept, *view.pictures) if (out / name).exists()]
    apart = "" if len(results) == 1 else f", and a folder for each of {len(results)} results"
    console.print(f"written to {out}: {', '.join(written)}{apart}")


def _warnings(pairs: Sequence[dict[str, Any]]) -> list[str]:
    """One for each kind: that of the first pair, and how many others have the same."""
    kinds: dict[str, list[str]] = {}
    for pair in pairs:
        with_own_control = pair["second"].startswith(pair["first"] + CONTROL)
        if pair["warning"] and not with_own_control:
            kind = pair["warning"].replace(pair["first"], "").replace(pair["second"], "")
            kinds.setdefault(kind, []).append(pair["warning"])
    return [
        alike[0] + (f" (the same of {len(alike) - 1} more pairs, see comparison.json)" if len(alike) > 1 else "")
        for alike in kinds.values()
    ]
