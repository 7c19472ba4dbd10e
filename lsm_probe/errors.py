"""The exceptions that end a command with one line instead of a traceback."""

import unicodedata


def one_line(message: str) -> str:
    """`message` without line breaks and control characters, which ids, file names and values may hold."""
    line = " ".join(message.splitlines())
    return "".join(c if unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode() for c in line)


class InputError(Exception):
    """Something given from outside cannot be used.

    The message says what is wrong, where, and how to fix it; the command line prints it without a traceback and exits
    with code 2. It is made one line, whatever names it holds.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class SampleFault(InputError):
    """A sample, or the model on it, gives no sound numbers; another sample may."""


class WorkFailed(Exception):
    """The input was usable, but the work came to no good end. One line; exit code 1."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class Terminated(BaseException):
    """The process received SIGTERM. Exit code 143.

    Not an `Exception`, like KeyboardInterrupt, so that `except Exception` does not catch it.
    """
