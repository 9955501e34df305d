"""Lets this machine run programs of the target's architecture, by QEMU's user emulation from the tools tree.

It is registered with the kernel's binfmt_misc and opened then (flag F), so that it is found inside a chroot as well.

Emulated, a shell script is slow, because each `sed` starts an emulator. Most of what maintainer scripts call does the
same on each architecture, so while packages are installed this machine's own programs are found before those of the
tree: what is left to emulate is dpkg itself and the few programs that write something of their architecture.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from image.builder.errors import MissingError

_REGISTRY: Final = Path("/proc/sys/fs/binfmt_misc")
_OF_DEBIAN: Final = "qemu-aarch64"  # registered by qemu-user-static and by qemu-user-binfmt
_MACHINES: Final = {"arm64": "aarch64", "amd64": "x86_64"}
# ELF, 64 bit, little endian, EM_AARCH64 (Documentation/admin-guide/binfmt-misc.rst).
_MAGIC: Final = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK: Final = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"

_ALIKE: Final = (
    "basename", "cat", "chgrp", "chmod", "chown", "cmp", "cp", "cut", "date", "dirname", "dpkg-deb", "env", "expr",
    "find", "grep", "gzip", "head", "id", "install", "ln", "ls", "mkdir", "mktemp", "mv", "printf", "readlink",
    "realpath", "rm", "rmdir", "sed", "sort", "stat", "tail", "tar", "touch", "tr", "uniq", "wc", "xargs",
)  # fmt: skip
_COMPILERS: Final = ("usr/sbin/depmod", "usr/bin/systemd-hwdb")
"""What they write is the same on each architecture, and takes them long."""
_INTERPRETERS: Final = ("bash", "dash", "perl")
"""Scripts name these by their whole path. They are of essential packages: over what is mounted, dpkg could not rename a
new version."""

NATIVE_PATH: Final = "/.native"

# The second and third are where this machine's programs look for their loader and libraries; a tree of the other
# architecture has neither.
_BEFORE_DPKG: Final = """
mkdir "$1{native}" "$1/usr/lib64" "$1/usr/lib/x86_64-linux-gnu"
ln -s usr/lib64 "$1/lib64"
mount -t tmpfs -o mode=0755 tmpfs "$1{native}"
for path in {lent}; do cp "{tools}/$path" "$1{native}/"; done
mount --bind "{tools}/usr/lib64" "$1/usr/lib64"
mount --bind "{tools}/usr/lib/x86_64-linux-gnu" "$1/usr/lib/x86_64-linux-gnu"
"""
_AFTER_ESSENTIAL: Final = """
for name in {interpreters}; do mount --bind "{tools}/usr/bin/$name" "$1/usr/bin/$name"; done
"""
_AT_THE_END: Final = """
for name in {interpreters}; do umount "$1/usr/bin/$name"; done
umount "$1{native}" "$1/usr/lib64" "$1/usr/lib/x86_64-linux-gnu"
rmdir "$1{native}" "$1/usr/lib64" "$1/usr/lib/x86_64-linux-gnu"
rm "$1/lib64"
"""


def needed(architecture: str) -> bool:
    """Say whether programs of an architecture do not run here by themselves."""
    return _MACHINES[architecture] != os.uname().machine


def native_hooks(tools: Path) -> tuple[str, ...]:
    """Return options of mmdebstrap that lend a tree programs of this machine, and take them away again.

    They mount, so mmdebstrap needs a mount namespace of its own; and `NATIVE_PATH` has to come first in the PATH.
    """
    scripts = {"extract": _BEFORE_DPKG, "essential": _AFTER_ESSENTIAL, "customize": _AT_THE_END}
    words = {
        "tools": tools,
        "native": NATIVE_PATH,
        "lent": " ".join((*(f"usr/bin/{name}" for name in _ALIKE), *_COMPILERS)),
        "interpreters": " ".join(_INTERPRETERS),
    }
    return tuple(f"--{when}-hook=set -eu\n{script.format(**words)}" for when, script in scripts.items())


@contextmanager
def registered(architecture: str, tools: Path) -> Iterator[None]:
    """Have programs of an architecture run, as long as this lasts; nothing is done where they do already.

    Raises:
        MissingError: this kernel cannot, or the target is none that is emulated.
    """
    if not needed(architecture):
        yield
        return
    if architecture != "arm64" or not needed("arm64"):
        raise MissingError(f"a {architecture} image is built on a {architecture} machine")
    if not (_REGISTRY / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_REGISTRY)], check=False, capture_output=True)
    of_debian = _REGISTRY / _OF_DEBIAN
    if of_debian.exists() and re.search(r"^flags: \w*F", of_debian.read_text(), re.MULTILINE):
        yield
        return
    emulator = tools / "usr/bin/qemu-aarch64-static"
    if not emulator.exists():
        emulator = tools / "usr/bin/qemu-aarch64"
    name = f"sluice-aarch64-{os.getpid()}"  # two builds may run, and each takes back its own
    try:
        (_REGISTRY / "register").write_text(f":{name}:M::{_MAGIC}:{_MASK}:{emulator}:F")
    except OSError as error:
        raise MissingError(
            f"this kernel does not run arm64 programs (binfmt_misc: {error.strerror}): install qemu-user-static, "
            "or build on an arm64 machine"
        ) from error
    try:
        yield
    finally:
        (_REGISTRY / name).write_text("-1")
