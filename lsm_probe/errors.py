"""The one exception a user can cause."""


class InputError(Exception):
    """Something given from outside cannot be used.

    The message is one line that says what is wrong, where, and how to mend it; the command line prints it
    without a traceback and exits with code 2.
    """
