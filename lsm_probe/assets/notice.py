"""Output while an asset is prepared: one line on stderr, and no messages from libraries."""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def tell(message: str) -> Iterator[None]:
    """Shows `message` on stderr: as a spinner on a terminal, as one plain line elsewhere."""
    from rich.console import Console

    # The current stream: `quiet_libraries` may replace sys.stderr while the spinner is shown.
    console = Console(file=sys.stderr, highlight=False)
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        console.print(message, soft_wrap=True)
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences transformers' log lines, all progress bars and Python warnings, and restores them after."""
    # The GGUF reader's progress bar has no switch, so its stream is replaced.
    with quiet_log(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet_log() -> Iterator[None]:
    """Silences transformers' log lines except errors, and restores them after."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
