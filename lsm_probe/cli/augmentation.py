"""What `lsm-probe augment` shows: progress with tokens per second, then counts by task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from lsm_probe.cli.console import text_console
from lsm_probe.cli.progress import progress, quiet_transformers
from lsm_probe.cli.stopping import stoppable
from lsm_probe.data.augmentation.at_scale import augment_at_scale, require_datatrove
from lsm_probe.data.augmentation.local import BATCH_SIZE
from lsm_probe.data.augmentation.recipe import POOLS, Recipe
from lsm_probe.data.augmentation.run import augment
from lsm_probe.data.augmentation.servers import IN_FLIGHT, find_server
from lsm_probe.data.manifest import scan_manifest
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import LEFT_OUT, OnError, Problems
from lsm_probe.errors import InputError
from lsm_probe.files import check_can_write
from lsm_probe.models.loading import load, load_prompter
from lsm_probe.models.thinking import UNFINISHED


def augment_and_report(
    data: str,
    out: Path,
    llm: str,
    *,
    loading: dict[str, Any],
    instructions: Sequence[str] | None,
    tasks: Sequence[str] | None,
    recipe: dict[str, Any],
    batch_size: int | None,
    server: str | None,
    workers: int,
    limit: int | None,
    resume: bool,
    on_error: OnError,
    as_json: bool,
) -> None:
    """Makes self-powered data and shows the report."""
    quiet_transformers()
    check_can_write("--out", out, folder=True)
    pool = read_pool(*(instructions or POOLS))
    settings = Recipe(pool=pool.only(tasks) if tasks else pool, **recipe)
    if server is None and workers > 1:
        raise InputError("--workers is for --server URL; in this process raise --batch-size instead")
    problems = Problems()
    samples = [sample for _, sample in list(scan_manifest(data, problems))[:limit]]
    make: Callable[..., dict[str, Any]]
    if server is None:
        make = partial(augment, load(llm, **loading), batch_size=batch_size or BATCH_SIZE)
    else:
        make = _at_scale(llm, server, loading, workers=workers, in_flight=batch_size or IN_FLIGHT)
    with stoppable(), progress() as on_progress:

        def show(done: int, tokens: int, seconds: float, total: int) -> None:
            rate = f"{tokens / seconds:.0f} tokens/s" if seconds else ""
            on_progress(llm, done, total, rate)

        report = make(samples, out, settings, resume=resume, on_error=on_error, problems=problems, on_progress=show)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _show(report, out)


def _at_scale(
    llm: str, server: str, loading: dict[str, Any], *, workers: int, in_flight: int
) -> Callable[..., dict[str, Any]]:
    """`augment` with the answers coming from a server, which is tried out at once."""
    if loading["device"] != "auto":
        raise InputError("--device is for generation in this process; CUDA_VISIBLE_DEVICES chooses for --server vllm")
    require_datatrove()
    prompter = load_prompter(llm, template=loading["template"], date=loading["date"])
    found = find_server(server, prompter, dtype=loading["dtype"])

    def make(*data: Any, on_progress: Callable[[int, int, float, int], None], **given: Any) -> dict[str, Any]:
        given |= {"server": found, "workers": workers, "in_flight": in_flight}
        # Tokens, and the seconds they take, are the server's.
        return augment_at_scale(
            prompter, *data, on_progress=lambda done, total: on_progress(done, 0, 0.0, total), **given
        )

    return make


def _show(report: dict[str, Any], out: Path) -> None:
    table = Table(title="self-powered data by task")
    reasons = sorted(report["dropped"])
    for heading in ("task", "samples", "kept", *(f"dropped: {reason}" for reason in reasons), "tokens"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, counts in [*report["tasks"].items(), ("all", report)]:
        mean = counts["mean_response_tokens"]
        dropped = [str(counts["dropped"].get(reason, 0)) for reason in reasons]
        table.add_row(
            name, str(counts["samples"]), str(counts["kept"]), *dropped, "" if mean is None else f"{mean:.0f}"
        )
    console = text_console()
    console.print(table)
    if report["tokens_per_second"]:
        console.print(
            f"{report['response_tokens']} answer tokens in {report['seconds']:.0f} s: "
            f"{report['tokens_per_second']:.0f} tokens/s",
            highlight=False,
        )
    if taken := report.get("thinking"):
        unfinished = report["dropped"].get(UNFINISHED, 0)
        remedy = f"; {unfinished} stop before the thinking ends: raise --max-new-tokens" if unfinished else ""
        console.print(f"{taken} answers begin with thinking, which is left out of the targets{remedy}", highlight=False)
    if report["left_out"]:
        console.print(f"left out: {len(report['left_out'])}, each with its reason in {out / LEFT_OUT}", highlight=False)
    console.print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir() if p.name[0] != '.'))}")
