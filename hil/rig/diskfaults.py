"""A disk that begins to fail below a running machine, and one that recovers."""

from typing import Final

from hil.rig.flips import BACKEND
from hil.rig.machine import DISK, Machine

_FAULTS: Final = "faults"
_EIO: Final = 5


def writes_fail(machine: Machine) -> None:
    """Let every write and every flush end in an I/O error from now on.

    Raises:
        QmpError: QEMU refuses.
    """
    rules = [
        {"event": "none", "iotype": kind, "errno": _EIO, "once": False, "immediately": True}
        for kind in ("write", "write-zeroes", "discard", "flush")
    ]
    machine.qmp.command("blockdev-add", driver="blkdebug", node_name=_FAULTS, image=DISK, inject_error=rules)
    machine.qmp.command("qom-set", path=BACKEND, property="drive", value=_FAULTS)


def recover(machine: Machine) -> None:
    """Let it work again, as after a plug that was loose. A file system may have given it up meanwhile.

    Raises:
        QmpError: QEMU refuses, or it did not fail.
    """
    machine.qmp.command("qom-set", path=BACKEND, property="drive", value=DISK)
    machine.qmp.command("blockdev-del", node_name=_FAULTS)
