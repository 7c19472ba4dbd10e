"""Problems of the input: collected while reading and reported once, so that nothing is left out without a message."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lsm_probe.errors import InputError, one_line
from lsm_probe.files import replacing

OnError = Literal["fail", "skip"]

LEFT_OUT = "left_out.txt"


@dataclass
class Problems:
    """The unusable entries of an input, each as one line with its place, the problem, and how to fix it."""

    found: list[str] = field(default_factory=list)

    def add(self, where: str, reason: object) -> None:
        line = one_line(f"{where}: {reason}" if where else str(reason))
        if line not in self.found[-1:]:  # an utterance with several tasks has the same problem in each
            self.found.append(line)

    def write(self, folder: Path) -> None:
        """Writes all lines to `left_out.txt`; no file if there are none."""
        path = folder / LEFT_OUT
        if not self.found:
            path.unlink(missing_ok=True)
            return
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in self.found), encoding="utf-8")

    @contextmanager
    def catching(self, where: str = "") -> Iterator[None]:
        """Records an InputError of its block as a line here; the block's entry is then left out."""
        try:
            yield
        except InputError as error:
            self.add(where, error)

    def settle(self, on_error: OnError) -> None:
        """Raises at the first problem, or warns how many entries were left out.

        Raises:
            InputError: there are problems and `on_error` is "fail"; names the first and counts the rest.

        Warns:
            UserWarning: there are problems and `on_error` is "skip".
        """
        if not self.found:
            return
        more = len(self.found) - 1
        first = self.found[0] + (f" (and {more} more)" if more else "")
        if on_error == "fail":
            raise InputError(first)
        warnings.warn(f"left out {len(self.found)}: {first}", stacklevel=3)
