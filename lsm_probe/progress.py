"""Progress bars in Jupyter notebooks, unless the caller gives another callback; no output in scripts."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

OnProgress = Callable[..., None]
"""Called as `on_progress(name, done, total, note="")`; `total` is None as long as it is unknown."""


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


@contextmanager
def notebook_progress(given: OnProgress | None = None) -> Iterator[OnProgress]:
    """Gives `on_progress(name, done, total, note="")`, which shows a bar for each name in a notebook.

    The bars disappear at the end of the block. `TQDM_DISABLE=1` turns them off.

    Args:
        given: the caller's own callback, which is used instead of bars, in a notebook or not.

    Example:
        >>> with notebook_progress() as on_progress:
        ...     on_progress("my-lsm", 1, 2, "attention")
    """
    if given is not None:
        yield given
        return
    if not in_notebook():
        yield lambda name, done, total, note="": None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets the bars are text, which is fine
        from tqdm.auto import tqdm
    bars: dict[str, Any] = {}

    def on_progress(name: str, done: int, total: int | None, note: str = "") -> None:
        if name not in bars:
            bars[name] = tqdm(desc=name, total=total, leave=False)
        bar = bars[name]
        bar.n, bar.total = done, total
        bar.set_postfix_str(note)  # also draws the bar

    try:
        yield on_progress
    finally:
        for bar in bars.values():
            bar.close()
