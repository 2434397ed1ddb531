"""Bad world: what stops a task or a command. Bad data is a Reason (records.py), bad code an assert.

Each class carries the exit code that the command line ends with.
"""


class PmdError(Exception):
    """Something the program cannot go on from. The message says what, where and what to do."""

    exit_code = 1


class BadRequest(PmdError):
    """The command line or the corpus file asks for something impossible."""

    exit_code = 2


class Refused(PmdError):
    """Going on would mix two definitions, or bytes that are not what a lock or a pin says."""

    exit_code = 3


class Busy(PmdError):
    """Another run holds this output."""

    exit_code = 4


class Unavailable(PmdError):
    """No address gives a published file. What has come of it is kept; the same line goes on from there."""


class Damaged(PmdError):
    """A file is not what it was when it was finished."""


class TasksFailed(PmdError):
    """Some tasks failed for good; each is named."""


class Stopped(PmdError):
    """A signal ended the run; running the same line again goes on from there."""

    exit_code = 75
