"""Opens a damaged store and is killed before each step in turn: `quarantine_victim.py DIRECTORY kept|forgotten`.

`DIRECTORY/damaged` is copied to `DIRECTORY/<n>` for each; the last one is that which came to its end. A step is a file
that is opened, renamed or removed, or a connection of SQLite (https://docs.python.org/3/library/audit_events.html).
With `forgotten` nothing is written down before the store is put aside.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from gateway.outbox import opening, rescue
from gateway.outbox.quarantine import Damage
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import event, settings

STEPS = frozenset({"open", "os.rename", "os.remove", "sqlite3.connect"})


def open_and_die(file: Path, at_step: int) -> None:
    """Open the store in this process, which ends before a step; or with status 0 when there are not so many."""
    left = at_step

    def look(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if name in STEPS and str(arguments[0]).startswith((str(file.parent), f"file://{file.parent}")):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(look)
    outbox = Outbox.open(file, settings())
    outbox.put([event(1)])
    os._exit(0)  # not closed: as a power cut would leave it


def forget(_file: Path, _damage: Damage) -> None:
    """Take the place of the protection."""


def main(directory: Path, mode: str) -> None:
    if mode == "forgotten":
        for module in (opening, rescue):
            vars(module)["write_down"] = forget
    step = 0
    while True:
        place = directory / str(step)
        shutil.copytree(directory / "damaged", place)
        child = os.fork()
        if child == 0:
            open_and_die(place / "outbox.db", step)
        if os.waitpid(child, 0)[1] == 0:
            return
        step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
