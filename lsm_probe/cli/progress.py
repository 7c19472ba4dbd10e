"""Progress on stderr: bars in a terminal, lines in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lsm_probe.progress import OnProgress

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress() -> Iterator[OnProgress]:
    """Gives `on_progress(name, done, total, note="")`, which shows a bar for each name; total None: still unknown.

    Where stderr is not a terminal, a bar would appear only when all is done. There a line says how far it is: at the
    start, at the end, and every 10 s.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_lines(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def on_progress(name: str, done: int, total: int | None, note: str = "") -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, note=note)
            bars.update(tasks[name], completed=done, total=total, note=note)

        yield on_progress


def _print_lines(console: Console) -> OnProgress:
    printed: dict[str, float] = {}
    finished: set[str] = set()

    def on_progress(name: str, done: int, total: int | None, note: str = "") -> None:
        now, is_finished = monotonic(), total is not None and done >= total
        is_due = now >= printed.get(name, -_SECONDS_BETWEEN_LINES) + _SECONDS_BETWEEN_LINES
        if is_due or (is_finished and name not in finished):
            printed[name] = now
            count = f"{done}" if total is None else f"{done}/{total}"
            console.print(f"{name}: {count}{note and ', '}{note}", markup=False, highlight=False, soft_wrap=True)
        if is_finished:
            finished.add(name)

    return on_progress


def quiet_transformers() -> None:
    """Keeps transformers' own bars and remarks from stderr, and those of the model hub's client."""
    from huggingface_hub.utils import logging as of_the_hub
    from transformers.utils import logging

    of_the_hub.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
