"""Where releases lie in clear while they are published: for this process alone, and never longer than it lives."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from cloud_bridge.registry.directories import PRIVATE, make_directory
from cloud_bridge.registry.errors import RegistryError

log = structlog.get_logger()


@contextmanager
def private_work(above: Path) -> Iterator[Path]:
    """Make a directory that nobody else can read, and remove it; what killed processes have left goes, too.

    Raises:
        RegistryError: it cannot be made.
    """
    try:
        make_directory(above, PRIVATE)
        with _locked(above):  # else another publisher takes what is not locked yet for a leftover
            _remove_leftovers(above)
            work = above / secrets.token_hex(8)
            work.mkdir(mode=0o700)
            descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # as long as this process lives
    except OSError as error:
        raise RegistryError(f"{above}: {error.strerror or error}; the publisher must be able to write here") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(above: Path) -> None:
    for work in above.iterdir():
        try:
            descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or none of ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # somebody is at work
        else:
            shutil.rmtree(work, ignore_errors=True)
            log.info("publisher_leftover_removed", directory=str(work))
        finally:
            os.close(descriptor)
