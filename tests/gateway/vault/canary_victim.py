"""A process that has weights open, well guarded or not, and waits to be searched."""

import logging
import os
import resource
import sys
from pathlib import Path

from gateway.vault.hardening import harden_process
from gateway.vault.weights import open_sealed


def main() -> None:
    mode, path, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    os.chdir(work)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.setgid(65534)
    os.setuid(65534)
    if mode == "protected":
        harden_process()
    else:
        # Changing users has made this process undumpable; a service that runs as its user from the start is not.
        import ctypes  # noqa: PLC0415 - the careless half only

        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
    weights = open_sealed(path, bytes(range(32)))
    # What a runtime does: it maps the file.
    held = Path(weights.path).read_bytes()
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("victim").info("opened %s with %d bytes", weights.header, len(held))
    if mode == "careless":
        (work / "plain.tflite").write_bytes(held)
    (work / "ready").touch()
    sys.stdout.flush()
    os.read(_never(), 1)


def _never() -> int:
    reading, _ = os.pipe()
    return reading


if __name__ == "__main__":
    main()
