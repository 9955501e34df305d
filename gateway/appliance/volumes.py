"""Volumes that somebody has plugged in: which there are, and what is on them. Mounting needs root.

A stranger's file system is read by the kernel, so as little of it as possible is: only FAT, exFAT and ext4, only
what is removable or labelled for us, read-only without replaying a journal, without device nodes, programs and set-
uid bits, and of that only named regular files in the top folder, up to a size.
"""

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import structlog

from gateway.appliance.errors import ApplianceError

log = structlog.get_logger()

LABEL: Final = "SLUICE"
MAX_VOLUMES: Final = 16
_HEAD_BYTES: Final = 4096
_MOUNT_SECONDS: Final = 30.0
_MAX_FILES: Final = 64

FileSystem = Literal["vfat", "exfat", "ext4"]


@dataclass(frozen=True, slots=True)
class Volume:
    """A file system on a device."""

    device: Path  # /dev/sda1
    kind: FileSystem
    label: str

    @property
    def words(self) -> str:
        """For people."""
        return f"volume {self.label} ({self.device})" if self.label else f"volume {self.device}"


def superblock(head: bytes) -> tuple[FileSystem, str] | None:
    """Tell file system and label from the first 4 KiB of a volume; None for all that is not read here."""
    if head[3:11] == b"EXFAT   ":
        return "exfat", ""  # its label lies elsewhere
    if head[0x438:0x43A] == b"\x53\xef":  # ext2, 3 and 4
        return "ext4", _word(head[0x478:0x488])
    if head[0x1FE:0x200] == b"\x55\xaa":
        if head[0x52:0x57] == b"FAT32":
            return "vfat", _word(head[0x47:0x52])
        if head[0x36:0x39] == b"FAT":
            return "vfat", _word(head[0x2B:0x36])
    return None


def _word(raw: bytes) -> str:
    text = raw.split(b"\0")[0].decode("ascii", "replace").strip()
    return "" if text == "NO NAME" else text


def volumes(devices: Path, sysfs: Path) -> list[Volume]:
    """Return the volumes that may hold something for us, in the order of their names.

    Args:
        devices: /dev.
        sysfs: /sys.
    """
    found: list[Volume] = []
    block = sysfs / "class/block"
    for entry in sorted(block.iterdir()) if block.is_dir() else []:
        if entry.name.startswith(("loop", "ram", "zram", "dm-", "nbd", "md", "sr", "fd")) or _is_empty(entry):
            continue
        head = _head(devices / entry.name)
        known = superblock(head)
        if known is not None and (_removable(entry) or known[1] == LABEL):
            found.append(Volume(devices / entry.name, *known))
    return found[:MAX_VOLUMES]


def _is_empty(entry: Path) -> bool:
    """Tell whether a drive has no medium: to open it all the same makes the kernel complain, each time."""
    try:
        return int((entry / "size").read_text()) == 0
    except (OSError, ValueError):
        return False


def _removable(entry: Path) -> bool:
    real = entry.resolve()
    disk = real.parent if (real / "partition").exists() else real
    try:
        return (disk / "removable").read_text().strip() == "1" or any(part.startswith("usb") for part in real.parts)
    except OSError:
        return False


def _head(device: Path) -> bytes:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # pulled out meanwhile, or an empty card reader
        return b""
    try:
        return os.read(fd, _HEAD_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)


class Mounter(Protocol):
    """Makes the files of a volume visible."""

    def mounted(self, volume: Volume, *, writable: bool) -> contextlib.AbstractContextManager[Path]:
        """Mount a volume and give its top folder. Raises ApplianceError when it cannot be."""


@dataclass(frozen=True, slots=True)
class KernelMounter:
    """Mounts with mount(8), below a directory that only root can enter."""

    directory: Path

    @contextlib.contextmanager
    def mounted(self, volume: Volume, *, writable: bool) -> Iterator[Path]:
        """See `Mounter.mounted`."""
        point = self.directory / volume.device.name
        point.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._call(["mount", "-t", volume.kind, "-o", options(volume.kind, writable=writable), volume.device, point])
        try:
            yield point
        finally:
            try:
                self._call(["umount", point])
            except ApplianceError as error:
                log.warning("volume_stays_mounted", volume=str(volume.device), error=str(error))
            else:
                with contextlib.suppress(OSError):
                    point.rmdir()

    def _call(self, command: Sequence[str | Path]) -> None:
        words = [str(word) for word in command]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_MOUNT_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ApplianceError(f"{words[0]} {words[-1]}: {error}") from error
        if done.returncode != 0:
            raise ApplianceError(f"{' '.join(words)}: {done.stderr.strip() or f'status {done.returncode}'}")


def options(kind: FileSystem, *, writable: bool) -> str:
    """Return the mount options; `noload`: the journal of a stranger's ext4 is not replayed, for that writes."""
    words = ["rw" if writable else "ro", "nosuid", "nodev", "noexec", "nosymfollow"]
    if kind == "ext4":
        words += [] if writable else ["noload"]
    else:
        words += ["umask=0077", "errors=remount-ro"]
    return ",".join(words)


def named_files(top: Path, fits: Callable[[str], bool], max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Read the regular files of a top folder whose names fit, up to one byte more than `max_bytes` of each."""
    try:
        names = sorted(entry.name for entry in os.scandir(top) if fits(entry.name))[:_MAX_FILES]
    except OSError as error:
        log.warning("volume_unreadable", place=str(top), error=error.strerror or str(error))
        return
    for name in names:
        try:
            # Neither a link out of the volume nor a pipe to wait at for ever.
            fd = os.open(top / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    yield name, file.read(max_bytes + 1)
        except OSError as error:
            log.warning("volume_file_unreadable", file=str(top / name), error=error.strerror or str(error))


def erase_file(file: Path, note: str) -> None:
    """Overwrite a file, remove it, and leave a note in its place. On flash older copies may survive unseen.

    Raises:
        OSError: the medium refuses.
    """
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as out:
        out.write(b"\n" * os.fstat(out.fileno()).st_size)
        out.flush()
        os.fsync(out.fileno())
    used = file.with_name(f"{file.stem}.used.txt")
    with used.open("w", encoding="utf-8") as out:
        out.write(note)
        out.flush()
        os.fsync(out.fileno())
    file.unlink()
    fd = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
