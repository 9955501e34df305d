"""One bit of the disk flips below a running machine, as in worn flash: no boot is needed to see what comes of it."""

from pathlib import Path
from typing import Final

from hil.loopback.children import RigError
from hil.rig.machine import Machine

BACKEND: Final = "/machine/peripheral/blk/virtio-backend"
"""The disk as the guest has it, in QEMU's tree of objects."""


def flip_below(machine: Machine, original: Path, offset: int, bit: int = 0) -> None:
    """Flip a bit of the disk of a running machine.

    Args:
        machine: its next restored snapshot has the bit as it was.
        original: a raw image that has at the offset what the disk has there.
        offset: in bytes, of the disk.
        bit: of the byte.

    Raises:
        RigError: the image ends before, or QEMU refuses.
    """
    with original.open("rb") as disk:
        disk.seek(offset)
        byte = disk.read(1)
    if not byte:
        raise RigError(f"{original} ends before {offset}")
    write_below(machine, offset, byte[0] ^ (1 << bit))


def write_below(machine: Machine, offset: int, value: int, length: int = 1) -> None:
    """Overwrite a part of the disk of a running machine with one value, past the guest's own writes.

    Raises:
        RigError: QEMU refuses.
    """
    said = machine.qmp.monitor(f'qemu-io -d {BACKEND} "write -P {value} {offset} {length}"').strip()
    if said:
        raise RigError(f"QEMU did not write to its disk: {said}")
