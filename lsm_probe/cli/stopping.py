"""Ctrl-C and SIGTERM: a command ends within seconds, says how to go on, and exits with 130 or 143."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from lsm_probe.errors import Terminated


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raises Terminated at SIGTERM, as Python raises KeyboardInterrupt at Ctrl-C.

    Not for one of several processes: it would wait for the others, which the launcher ends too.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


RESUME = "run the same command with --resume to continue"


@contextmanager
def stoppable(way_on: str = RESUME) -> Iterator[None]:
    """Ends the command when the block is stopped, with one line that says how to go on.

    Args:
        way_on: what is said where the work itself does not say how far it came.

    Raises:
        typer.Exit: Ctrl-C (130) or SIGTERM (143) came.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        from lsm_probe.distributed import print_on_main

        terminated = isinstance(stop, Terminated)
        print_on_main(str(stop) or f"{'stopped by SIGTERM' if terminated else 'interrupted'}{way_on and ': '}{way_on}")
        raise typer.Exit(143 if terminated else 130) from None


def _terminate(*_: Any) -> None:
    raise Terminated
