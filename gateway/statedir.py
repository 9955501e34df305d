"""The state directory: made, and used by one gateway at a time."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from gateway.errors import ConfigError, GatewayError
from gateway.owner import words_for_a_stranger


def locked_state(directory: Path) -> TextIO:
    """Make the state directory and keep other gateways out of it while the returned file is open.

    Raises:
        ConfigError: it cannot be made or written to.
        GatewayError: another gateway runs in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (directory / "gateway.lock").open("w")
    except OSError as error:
        is_there = os.path.isdir(directory)  # noqa: PTH112 - it raises nothing
        words = words_for_a_stranger(directory / "gateway.lock") if isinstance(error, PermissionError) else ""
        if is_there and words:
            raise ConfigError(words) from error
        raise ConfigError(
            f"gateway.state_directory {directory} cannot be used: {error.strerror or error}; make it a directory that "
            "the gateway's user may write to, or name another"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise GatewayError(
            f"another gateway is running in {directory}; stop that one first, or give this one a state_directory of "
            "its own"
        ) from error
    return lock
