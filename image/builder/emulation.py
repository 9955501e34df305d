"""Lets this machine run programs of the target's architecture, by QEMU's user emulation from the tools tree.

It is registered with the kernel's binfmt_misc and opened then (flag F), so that it is found inside a chroot as well.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

from image.builder.errors import MissingError

_REGISTRY: Final = Path("/proc/sys/fs/binfmt_misc")
_MACHINES: Final = {"arm64": "aarch64", "amd64": "x86_64"}
# ELF, 64 bit, little endian, EM_AARCH64 (Documentation/admin-guide/binfmt-misc.rst).
_MAGIC: Final = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK: Final = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


def needed(architecture: str) -> bool:
    """Say whether programs of an architecture do not run here by themselves."""
    return _MACHINES[architecture] != os.uname().machine


def register(architecture: str, tools: Path) -> None:
    """Register the emulator, unless one is.

    Raises:
        MissingError: this kernel cannot, or the target is none that is emulated.
    """
    if architecture != "arm64":
        raise MissingError(f"a {architecture} image is built on a {architecture} machine")
    if not (_REGISTRY / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_REGISTRY)], check=False, capture_output=True)
    if any((_REGISTRY / name).exists() for name in ("qemu-aarch64", "sluice-aarch64")):
        return
    emulator = tools / "usr/bin/qemu-aarch64-static"
    if not emulator.exists():
        emulator = tools / "usr/bin/qemu-aarch64"
    try:
        (_REGISTRY / "register").write_text(f":sluice-aarch64:M::{_MAGIC}:{_MASK}:{emulator}:F")
    except OSError as error:
        raise MissingError(
            f"this kernel does not run arm64 programs (binfmt_misc: {error.strerror}): install qemu-user-static, "
            "or build on an arm64 machine"
        ) from error
