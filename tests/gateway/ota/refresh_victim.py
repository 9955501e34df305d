"""Refreshes once from a directory; for tests that kill it or count what it asks the kernel for.

python refresh_victim.py STATE ROOT_FILE STICK WALL_NS
"""

import sys
import time
from pathlib import Path

from gateway.config import Ota
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Unmetered
from gateway.ota.ways import DirectoryWay


def main() -> None:
    """Do it."""
    state, root_file, stick, wall_ns = sys.argv[1:]
    repository = Repository(
        Ota(root_file=Path(root_file), hardware="test-board"),
        Path(state),
        DirectoryWay(Path(stick)),
        meter=Unmetered(),
        now_ns=lambda: int(wall_ns),
        monotonic_ns=time.monotonic_ns,
        built_ns=0,
    )
    repository.refresh()


if __name__ == "__main__":
    main()
