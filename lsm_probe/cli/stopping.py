"""Ctrl-C and SIGTERM: a command ends within seconds and says how to continue."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lsm_probe.errors import Interrupted, Terminated

RESUME = "run the same command with --resume to continue"


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


@contextmanager
def stoppable(hint: str = RESUME) -> Iterator[None]:
    """Says how to continue if the block is stopped.

    Args:
        hint: how to continue, if the work itself does not say how far it came; may be empty.

    Raises:
        Interrupted: Ctrl-C came.
        Terminated: SIGTERM came.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted, Terminated) as stop:
        kind = Terminated if isinstance(stop, Terminated) else Interrupted
        raise kind(str(stop) or f"{kind.reason}: {hint}".removesuffix(": ")) from None


def _terminate(*_: Any) -> None:
    raise Terminated
