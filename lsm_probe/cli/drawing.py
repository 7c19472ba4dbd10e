"""Pictures are drawn when everything is measured and stored; where that fails, the measurement stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsm_probe.errors import InputError, WorkFailed
from lsm_probe.files import disk_is_full


@contextmanager
def report_drawing_failure(out: Path) -> Iterator[None]:
    """Ends the command with one line where the block, which draws what is stored in `out`, fails.

    Raises:
        WorkFailed: it failed, whatever matplotlib raised.
    """
    try:
        yield
    except (InputError, WorkFailed):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise WorkFailed(f"the numbers are in {out}, but drawing them failed ({reason})") from error
