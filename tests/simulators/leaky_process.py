"""The negative control of the soak: a process that keeps memory, descriptors and threads. Knobs: how much a second."""

import argparse
import os
import threading
import time
from pathlib import Path

TICKS = 10


def main() -> None:
    """Leak until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=0, help="a second")
    parser.add_argument("--descriptors", type=float, default=0.0, help="a second")
    parser.add_argument("--file", type=Path, help="grows by --bytes too, as a log that nobody rotates")
    options = parser.parse_args()
    kept: list[bytes] = []
    descriptors: list[int] = []
    started = time.monotonic()
    never = threading.Event()
    while not never.wait(1 / TICKS):
        kept.append(os.urandom(options.bytes // TICKS))
        while len(descriptors) < options.descriptors * (time.monotonic() - started):
            descriptors.append(os.open("/dev/null", os.O_RDONLY))
        if options.file is not None:
            with options.file.open("ab") as file:
                file.write(bytes(options.bytes // TICKS))


if __name__ == "__main__":
    main()
