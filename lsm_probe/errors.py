"""The exceptions that end a command with one line instead of a traceback, and their exit codes.

Any other exception is a bug and ends with its traceback. `lsm_probe.cli.main` prints the line.
"""

import unicodedata

RAISED_ON_ALL_RANKS = "_raised_on_all_ranks"
"""Attribute of an exception that every rank of a distributed run raises."""


def one_line(message: str) -> str:
    """`message` without the line breaks and control characters that ids, file names and values may contain."""
    line = " ".join(message.splitlines())
    return "".join(c if unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode() for c in line)


class CommandError(Exception):
    """Ends a command with one line on stderr: what is wrong, where, and what to do.

    The message is empty if the line has been printed already.
    """

    exit_code = 1

    def __init__(self, message: str = ""):
        super().__init__(one_line(message))


class InputError(CommandError):
    """An input of the user (an option, file, sample or checkpoint) cannot be used."""

    exit_code = 2


class SampleFault(InputError):
    """A sample, or the model on this sample, gives no valid numbers; other samples may."""


class NotMeasurable(InputError):
    """One measurement cannot be made of a model, or on these samples; other measurements may be possible."""


class WorkFailed(CommandError):
    """The input was usable, but the work failed."""


class CheckFailed(WorkFailed):
    """A check found a regression, and has printed it."""


class Stopped(BaseException):
    """A signal stopped the work.

    Not an `Exception`, like KeyboardInterrupt, so that `except Exception` does not catch it.
    """

    exit_code: int
    reason: str


class Interrupted(Stopped):
    """Ctrl-C, as the commands report it; the package raises KeyboardInterrupt."""

    exit_code = 130
    reason = "interrupted"


class Terminated(Stopped):
    """The process received SIGTERM."""

    exit_code = 143
    reason = "stopped by SIGTERM"
