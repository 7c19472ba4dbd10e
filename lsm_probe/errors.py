"""The exceptions that end a command with one line instead of a traceback."""


class InputError(Exception):
    """Something given from outside cannot be used.

    The message is one line that says what is wrong, where, and how to mend it; the command line prints it
    without a traceback and exits with code 2.
    """


class SampleFault(InputError):
    """A sample, or the model on it, gives no sound numbers; another sample may."""


class WorkFailed(Exception):
    """The input was usable, but the work came to no good end. One line; exit code 1."""


class Terminated(BaseException):
    """SIGTERM came, and what was finished is saved. One line; exit code 143.

    Like KeyboardInterrupt no `Exception`, so that what goes on after errors does not go on after this.
    """
