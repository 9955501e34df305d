"""Tells a vendor's part that is of its kind from one that is damaged, cut off, or made for another machine.

ELF: elf(5); packages: deb(5), ar(5); device trees: the Devicetree Specification, 5.2; kernel modules: modinfo(8).
"""

import re
import struct
from pathlib import PurePath
from typing import Final

_ELF: Final = b"\x7fELF"
_ELF_HEADER: Final = 64
_MACHINES: Final = {62: "amd64", 183: "arm64"}  # EM_X86_64, EM_AARCH64
_AR: Final = b"!<arch>\n"
_AR_HEADER: Final = 60
_FDT: Final = b"\xd0\x0d\xfe\xed"
_FDT_HEADER: Final = 40


def objection(name: str, content: bytes, architecture: str) -> str:
    """Say what is wrong with a file; empty: nothing that could be told from it."""
    if name.endswith(".dtb"):
        return _device_tree(content)
    if name.endswith(".deb"):
        return _package(content)
    if content.startswith(_ELF):
        return _program(content, architecture)
    if name.endswith(".ko") or ".so" in PurePath(name).suffixes:
        return "is no ELF file"
    return ""


def module_kernel(content: bytes) -> str:
    """Return the version of the kernel that a module was built for; empty: it does not say."""
    match = re.search(rb"\0vermagic=([^ \0]+)", b"\0" + content)
    return match[1].decode(errors="replace") if match else ""


def _device_tree(content: bytes) -> str:
    if not content.startswith(_FDT) or len(content) < _FDT_HEADER:
        return "is no device tree (.dtb, compiled)"
    (total,) = struct.unpack_from(">I", content, 4)
    return f"is cut off: {len(content)} of {total} bytes" if len(content) < total else ""


def _package(content: bytes) -> str:
    if not content.startswith(_AR + b"debian-binary"):
        return "is no Debian package"
    at = len(_AR)
    members = set()
    while at + _AR_HEADER <= len(content):
        header = content[at : at + _AR_HEADER]
        length = header[48:58].strip()
        if not length.isdigit():
            return f"is damaged: no header of a member at byte {at}"
        end = at + _AR_HEADER + int(length)
        if end > len(content):
            return f"is cut off: {len(content)} bytes, at least {end} are wanted"
        members.add(header[:16].rstrip(b" /").split(b".")[0])
        at = end + end % 2
    lacking = {b"debian-binary", b"control", b"data"} - members
    return f"is cut off: without {b' and '.join(sorted(lacking)).decode()}" if lacking else ""


def _program(content: bytes, architecture: str) -> str:
    if len(content) < _ELF_HEADER:
        return f"is cut off: {len(content)} bytes"
    (machine,) = struct.unpack_from("<H" if content[5] == 1 else ">H", content, 18)
    if _MACHINES.get(machine) != architecture:
        return f"is made for {_MACHINES.get(machine, f'another machine (ELF {machine})')}, wanted is {architecture}"
    return ""
