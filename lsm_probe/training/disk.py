"""A full disk, by whatever name a library reports it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lsm_probe.training.checkpoints import remove_unfinished

_FULL = 2**20  # bytes left
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream", "write failed")


@contextmanager
def disk_full_as_oserror(folder: Path) -> Iterator[None]:
    """Turns what safetensors and torch raise when they cannot write on into `OSError(ENOSPC)`, and takes the half
    checkpoint back."""
    try:
        yield
    except (SafetensorError, RuntimeError, OSError) as error:
        full = "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        # torch says only that its writer is not where it should be in the file.
        torch_failed = isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER)
        if not full and not (torch_failed and shutil.disk_usage(folder).free < _FULL):
            raise
        remove_unfinished(folder)
        raise OSError(errno.ENOSPC, "the disk is full", str(folder)) from error
