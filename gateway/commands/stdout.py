"""Standard output that takes nothing: closed, or on a full disk. What a command says must not be lost unnoticed."""

import errno
import os
import sys
import traceback

from gateway.errors import GatewayError


class OutputError(GatewayError):
    """What the command has to say could not be written."""


def require_output() -> None:
    """Refuse to begin where standard output is closed (`>&-`).

    Raises:
        OutputError: it is closed.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed; send it to /dev/null if it is not wanted")


def told_nowhere(error: OSError) -> OutputError | None:
    """Return what to tell when an error comes from standard output; None if it comes from elsewhere.

    The error itself does not say which file it is of; those who were writing, on the stack, do.
    A closed pipe is not meant: whoever reads has seen enough.
    """
    if error.filename is not None or error.errno == errno.EPIPE:
        return None
    frames = [frame for frame, _line in traceback.walk_tb(error.__traceback__)]
    streams = (sys.stdout, getattr(sys.stdout, "buffer", None))
    if not any(
        value is stream for frame in frames for value in frame.f_locals.values() for stream in streams if stream
    ):
        return None
    # Or the interpreter would try once more when it ends, and complain.
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return OutputError(f"standard output: {error.strerror or error}; not all was written")


def not_text(error: UnicodeEncodeError) -> OutputError | None:
    """Return what to tell of an argument that is no UTF-8; None if the error is about something else."""
    if not any("\udc80" <= character <= "\udcff" for character in error.object):
        return None
    return OutputError(f"{error.object[:100]!a} is no text in UTF-8; write it so")
