"""The disk: boot partition and two slots in a GPT, made without mounting anything."""

import json
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from image.builder.boards import EFI_ARCH, Board, Part, size
from image.builder.chroot import Tree

_SPACE: Final = uuid.UUID("2e8f3c54-17ab-5f7e-8f0e-0d8a5b1b7c90")
UBOOT_ENVIRONMENT: Final = "3de21764-95bd-54bd-a5c3-4abe786f38a8"
"""Type of its partition (U-Boot, doc/develop/uefi). The device's own definitions name no partition of this type."""
_BOOTABLE: Final = "0x4"  # U-Boot looks for boot.scr where the attribute "legacy BIOS bootable" is
_LOADER_CONF: Final = """# No default entry on purpose: see /usr/lib/sluice/bootchooser.
timeout 0
editor no
auto-entries no
auto-firmware no
secure-boot-enroll off
"""


def esp_tree(folder: Path, board: Board, loader: Path | None, files: Mapping[str, Path], epoch: int) -> None:
    """Lay out the boot partition of a new device: slot a, which needs no trial.

    Args:
        folder: made anew.
        board: its boot loader.
        loader: systemd-boot, signed; None where the board has another.
        files: what else lies there, by path.
        epoch: the time of all files, seconds.
    """
    shutil.rmtree(folder, ignore_errors=True)
    own = folder / "EFI/sluice"
    entries = folder / "loader/entries"
    for each in (own, entries):
        each.mkdir(parents=True)
    if loader is not None:
        machine = EFI_ARCH[board.architecture]
        for target in (
            folder / f"EFI/BOOT/BOOT{machine.upper()}.EFI",
            folder / f"EFI/systemd/systemd-boot{machine}.efi",
        ):
            target.parent.mkdir(parents=True)
            shutil.copyfile(loader, target)
        (folder / "loader/loader.conf").write_text(_LOADER_CONF)
        (folder / "loader/entries.srel").write_text("type1\n")
        (entries / "sluice-a.conf").write_text("title Sluice (a)\nsort-key sluice\nversion 1\nefi /EFI/sluice/a.efi\n")
    for path, source in sorted(files.items()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / path)
    for directory, _, names in os.walk(folder, topdown=False):
        for name in [*names, "."]:
            os.utime(Path(directory) / name, (epoch, epoch))


def uboot_script(text: bytes, epoch: int) -> bytes:
    """Wrap a script as U-Boot's `source` takes it: the legacy image format (include/image.h), type script."""
    body = struct.pack(">II", len(text), 0) + text

    def header(checksum: int) -> bytes:
        name = b"sluice".ljust(32, b"\0")
        kind = bytes((5, 22, 6, 0))  # Linux, arm64, script, not compressed
        return struct.pack(">IIIIIII", 0x27051956, checksum, epoch, len(body), 0, 0, zlib.crc32(body)) + kind + name

    return header(zlib.crc32(header(0))) + body


def sizes(board: Board) -> dict[str, str]:
    """Return the sizes as the definitions on the device name them."""
    parts = board.partitions
    return {
        "ESP": str(parts.esp),
        "ROOT": str(parts.root),
        "OUTBOX_MIN": str(parts.outbox_min),
        "OUTBOX_MAX": str(parts.outbox_max),
        "DATA_MIN": str(parts.data_min),
    }


def build(out: Path, board: Board, tools: Tree, *, esp: Path, root: Path, work: Path, epoch: int) -> dict[str, object]:
    """Write the disk, sparse. Its identifiers follow from the target, so that two builds are alike.

    Returns:
        what systemd-repart says of the partitions.

    Raises:
        BuildError: systemd-repart failed.
    """
    out.unlink(missing_ok=True)
    definitions = work / "repart"
    shutil.rmtree(definitions, ignore_errors=True)
    definitions.mkdir()
    kind = {"amd64": "root-x86-64", "arm64": "root-arm64"}[board.architecture]
    esp_size, root_size = board.partitions.esp, board.partitions.root
    bounds = "SizeMinBytes={0}\nSizeMaxBytes={0}\n"
    flags = ""
    if board.partitions.loader:
        (definitions / "05-loader.conf").write_text(
            f"[Partition]\nType={UBOOT_ENVIRONMENT}\nLabel=loader\n{bounds.format(board.partitions.loader)}"
        )
        flags = f"Flags={_BOOTABLE}\n"
    (definitions / "10-esp.conf").write_text(
        f"[Partition]\nType=esp\nLabel=ESP\n{flags}Format=vfat\nCopyFiles=/run/b/esp:/\n{bounds.format(esp_size)}"
    )
    (definitions / "20-root-a.conf").write_text(
        f"[Partition]\nType={kind}\nLabel=root-a\nCopyBlocks=/run/b/root/{root.name}\n{bounds.format(root_size)}"
    )
    (definitions / "30-root-b.conf").write_text(f"[Partition]\nType={kind}\nLabel=root-b\n{bounds.format(root_size)}")
    tree = Tree(tools.root, tools.progress, {**tools.environment, "SOURCE_DATE_EPOCH": str(epoch)})
    printed = tree.capture(
        [
            "systemd-repart", "--offline=yes", "--dry-run=no", "--empty=create", "--size=auto", "--sector-size=512",
            f"--seed={uuid.uuid5(_SPACE, board.name)}", f"--architecture={_architecture(board)}",
            "--definitions=/run/b/defs", "--json=short", f"/run/b/out/{out.name}",
        ],
        {definitions: "/run/b/defs", esp: "/run/b/esp", root.parent: "/run/b/root", out.parent: "/run/b/out"},
    )  # fmt: skip
    return {"partitions": json.loads(printed)}


def write_raw(out: Path, parts: Mapping[Part, Path]) -> None:
    """Write a vendor's parts that have a fixed place outside of file systems, such as a boot loader, to the disk."""
    with out.open("r+b") as target:
        for part, file in parts.items():
            if part.at:
                target.seek(size(part.at))
                target.write(file.read_bytes())


def _architecture(board: Board) -> str:
    return {"amd64": "x86-64", "arm64": "arm64"}[board.architecture]
