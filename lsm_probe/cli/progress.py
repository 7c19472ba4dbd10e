"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OnProgress = Callable[..., None]


@contextmanager
def progress() -> Iterator[OnProgress]:
    """Gives `on_progress(name, done, total, note="")`, which shows a bar for each name; total None: still unknown."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def on_progress(name: str, done: int, total: int | None, note: str = "") -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(escape(name), total=total, note=note)
            bars.update(tasks[name], completed=done, total=total, note=note)

        yield on_progress


def quiet_transformers() -> None:
    """Keeps transformers' own bars and remarks from stderr, and those of the model hub's client."""
    from huggingface_hub.utils import logging as of_the_hub
    from transformers.utils import logging

    of_the_hub.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
