"""Console output that prints names literally and escapes characters the encoding lacks."""

from __future__ import annotations

import codecs
import io
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 120
"""Width of tables, in characters, where the output is not a terminal."""
_ESCAPED = "lsm_probe.escaped"


def text_console(**options: Any) -> Console:
    """A console on stdout that prints brackets and `:smile:` in names as they are, and does not break lines."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH
    return Console(**{"soft_wrap": True, "markup": False, "emoji": False, "width": width, **options})


def print_any_character() -> None:
    r"""Makes stdout and stderr print characters that their encoding lacks (such as η on cp1252) as `\u03b7`."""
    codecs.register_error(_ESCAPED, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Escapes characters as JSON does, so that printed JSON stays valid JSON."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end
