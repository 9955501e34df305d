"""Unified kernel images: one for each slot, signed for Secure Boot, and with signed values of PCR 11.

What the stub measures into PCR 11: systemd's uki specification and systemd-stub(7); the phases: systemd-pcrphase(8).
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from image.builder.chroot import Tree
from image.builder.errors import BuildError

PHASES: Final = (
    "enter-initrd",
    "enter-initrd:leave-initrd",
    "enter-initrd:leave-initrd:sysinit",
    "enter-initrd:leave-initrd:sysinit:ready",
)
GATEWAY_PHASE: Final = PHASES[-1]
"""The gateway starts when the boot is through: its key is given out then, and no longer once a shutdown has begun."""

_MEASURED: Final = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile",
    ".dtbauto", ".hwids",
)  # fmt: skip
_CC_POLICY_PCR: Final = 0x17F


@dataclass(frozen=True, slots=True)
class Kernel:
    """What all slots share."""

    linux: Path
    initrd: Path
    version: str
    stub: Path
    os_release: str
    dtb: Path | None = None


@dataclass(frozen=True, slots=True)
class Uki:
    """One slot's."""

    slot: str
    file: Path
    pcr11: str  # when the gateway runs


def build(
    kernel: Kernel, out: Path, tools: Tree, *, slot: str, cmdline: Iterable[str], keys: Path, efi_arch: str
) -> Uki:
    """Build and sign one.

    Raises:
        BuildError: ukify failed, or what it signed is not what this code works out.
    """
    binds = {kernel.linux: "/run/b/in/linux", kernel.initrd: "/run/b/in/initrd", kernel.stub: "/run/b/in/stub"}
    binds |= {out.parent: "/run/b/out", keys: "/run/b/keys"}
    argv = [
        "ukify", "build", "--linux=/run/b/in/linux", "--initrd=/run/b/in/initrd",
        "--stub=/run/b/in/stub", f"--efi-arch={efi_arch}", f"--cmdline={' '.join(cmdline)}",
        f"--os-release={kernel.os_release}", f"--uname={kernel.version}", "--pcr-banks=sha256",
        "--pcrpkey=/run/b/keys/pcr.pub", "--pcr-private-key=/run/b/keys/pcr.key",
        "--pcr-public-key=/run/b/keys/pcr.pub",
        f"--phases={' '.join(PHASES)}", "--signtool=sbsign", "--secureboot-private-key=/run/b/keys/db.key",
        "--secureboot-certificate=/run/b/keys/db.crt", f"--output=/run/b/out/{out.name}",
    ]  # fmt: skip
    if kernel.dtb is not None:
        binds[kernel.dtb] = "/run/b/in/dtb"
        argv.append("--devicetree=/run/b/in/dtb")
    tools.run(argv, binds)
    image = out.read_bytes()
    found = sections(image)
    value = pcr11(found, GATEWAY_PHASE)
    _compare(found, value)
    return Uki(slot, out, value)


def sections(image: bytes) -> dict[str, bytes]:
    """Return the sections of a PE image, each as long as it is in memory.

    Raises:
        BuildError: it is none.
    """
    (at,) = struct.unpack_from("<I", image, 0x3C)
    if image[:2] != b"MZ" or image[at : at + 4] != b"PE\0\0":
        raise BuildError("no PE image")
    count, optional = struct.unpack_from("<H", image, at + 6)[0], struct.unpack_from("<H", image, at + 20)[0]
    found: dict[str, bytes] = {}
    for number in range(count):
        header = at + 24 + optional + number * 40
        name = image[header : header + 8].rstrip(b"\0").decode()
        virtual, _, raw, offset = struct.unpack_from("<IIII", image, header + 8)
        found[name] = image[offset : offset + min(raw, virtual)].ljust(virtual, b"\0")
    return found


def pcr11(found: Mapping[str, bytes], phase: str) -> str:
    """Return what PCR 11 (SHA-256, hex) holds in a phase of the boot of this image."""
    value = bytes(32)
    for name in _MEASURED:
        if name in found:
            value = _extended(value, name.encode() + b"\0")
            value = _extended(value, found[name])
    for word in phase.split(":"):
        value = _extended(value, word.encode())
    return value.hex()


def policy_digest(value: str) -> str:
    """Return the TPM policy "PCR 11 has this value" (TPM2_PolicyPCR), as `.pcrsig` names it."""
    selection = b"\0\0\0\1" + b"\0\x0b" + b"\3" + (1 << 11).to_bytes(3, "little")
    digest = hashlib.sha256(bytes.fromhex(value)).digest()
    return hashlib.sha256(bytes(32) + _CC_POLICY_PCR.to_bytes(4, "big") + selection + digest).hexdigest()


def _compare(found: Mapping[str, bytes], value: str) -> None:
    """The phases were signed by other code, systemd-measure: both must come to the same value."""
    signed = cast(dict[str, list[dict[str, Any]]], json.loads(found[".pcrsig"].rstrip(b"\0")))
    if policy_digest(value) not in {entry["pol"] for entry in signed["sha256"]}:
        raise BuildError("PCR 11 as worked out here is none of those that systemd-measure has signed")


def _extended(value: bytes, data: bytes) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(data).digest()).digest()
