"""Look into the encrypted partitions of a board from outside, with the key that its TPM has let out while it ran.

The host needs no device-mapper for that. Root on a device that runs has the keys of its disks in memory anyway; a test
asks for them so that what is left after a power cut can be judged without another boot.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hil.loopback.children import RigError
from hil.rig.device import Device
from hil.rig.disk import SECTOR, partitions, written

_ASK: Final = """\
import ctypes
tools = ctypes.CDLL('libcryptsetup.so.12')
tools.crypt_get_data_offset.restype = ctypes.c_uint64
disk, way = ctypes.c_void_p(), ctypes.c_void_p()
key, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
for failed in (
    tools.crypt_init(ctypes.byref(disk), b'@'),
    tools.crypt_load(disk, None, None),
    tools.crypt_keyslot_context_init_by_token(disk, -1, b'systemd-tpm2', None, 0, None, ctypes.byref(way)),
    tools.crypt_volume_key_get_by_keyslot_context(disk, -1, key, ctypes.byref(size), way) < 0,
):
    assert not failed
assert tools.crypt_get_sector_size(disk) == 512
print(key.raw[: size.value].hex(), tools.crypt_get_data_offset(disk))
"""


@dataclass(frozen=True, slots=True)
class Volume:
    """An encrypted partition: aes-xts-plain64 in sectors of 512 bytes."""

    label: str
    key: bytes
    offset: int  # of the content, in bytes from the partition's beginning


def volume(device: Device, label: str, node: str | None = None) -> Volume:
    """Ask a device that runs for the key of a partition.

    Args:
        device: its TPM is asked.
        label: of the partition.
        node: of the partition, where it is of another disk than the device's own.

    Raises:
        RigError: the TPM keeps it.
    """
    script = _ASK.replace("@", node or f"/dev/disk/by-partlabel/{label}")
    key, sectors = device.run(f"/usr/bin/python3 -I -S - <<'EOF'\n{script}EOF\n", seconds=300.0).split()
    return Volume(label, bytes.fromhex(key), int(sectors) * SECTOR)


def decrypt(raw: Path, wanted: Volume, target: Path) -> Path:
    """Write the content of an encrypted partition of a raw disk as a sparse file; returns it.

    What was never written stays a hole.

    Raises:
        RigError: there is no such partition.
    """
    found = partitions(raw).get(wanted.label)
    if found is None:
        raise RigError(f"{raw} has no partition {wanted.label}")
    begin, end = found.offset + wanted.offset, found.offset + found.size
    cipher = algorithms.AES(wanted.key)
    with raw.open("rb") as disk, target.open("wb") as plain:
        plain.truncate(end - begin)
        for start, length in written(raw):
            first, last = max(start, begin), min(start + length, end)
            if first >= last:
                continue
            first -= (first - begin) % SECTOR
            secret = os.pread(disk.fileno(), last - first, first)
            pieces = []
            for at in range(0, len(secret), SECTOR):
                number = (first + at - begin) // SECTOR
                opened = Cipher(cipher, modes.XTS(number.to_bytes(16, "little"))).decryptor()
                pieces.append(opened.update(secret[at : at + SECTOR]) + opened.finalize())
            os.pwrite(plain.fileno(), b"".join(pieces), first - begin)
    return target
