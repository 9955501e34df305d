"""Records that could not travel, kept beside the store for a technician: one file each, `outbox.db.aside/<name>`.

One that is only too large is a line as `gateway outbox export` writes it, for `cloud-bridge import`. One that the disk
gave back damaged is told as it was read, in base64: nothing else can be said of it.
"""

import base64
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from gateway.errors import OutboxError
from gateway.outbox.damage import side, sync_directory
from gateway.values import Stored
from gateway.wire.messages import RecordClass
from gateway.wire.plain import plain_json

log = structlog.get_logger()

MAX_FILES: Final = 1000
MAX_BYTES: Final = 64 * 1024 * 1024
"""What the directory may hold; a disk full of pictures helps nobody.

Beyond either, nothing that is only too large goes: its file is the one place where the record still is. It is not taken
in any more, and stays in the outbox. Of the unreadable ones the oldest make room for a new one.
"""

_NAME: Final = re.compile(r"(?P<epoch>[0-9a-f]{16})-(?P<class>[a-z]+)-(?P<seq>\d+)\.(?P<reason>[a-z-]+)\.ndjson")


class Aside:
    """The files of one store. Safe to use from any thread."""

    def __init__(self, store: Path) -> None:
        self.directory = side(store, ".aside")
        self._lock = threading.Lock()
        self._too_large: dict[tuple[str, str], frozenset[int]] = {}
        for file in self._files():
            found = _NAME.fullmatch(file.name)
            if found is not None and found["reason"] == "too-large":
                self._remember(found["epoch"], found["class"], int(found["seq"]))

    def too_large(self, record_class: RecordClass, epoch: str) -> frozenset[int]:
        """Return the numbers of an epoch and class that were set aside for their size."""
        return self._too_large.get((epoch, record_class), frozenset())

    def keep(self, record_class: RecordClass, epoch: str, row: Stored, reason: str, gateway: str) -> None:
        """Write a row down, durably; one that is there already stays as it is.

        Raises:
            OutboxError: it cannot be written, or there is no room; it must stay in the outbox then.
        """
        file = self.directory / f"{epoch}-{record_class}-{row.seq:012d}.{reason}.ndjson"
        with self._lock:
            if not file.exists():
                line = _line(record_class, epoch, row, reason, gateway)
                try:
                    self.directory.mkdir(mode=0o700, exist_ok=True)
                    if not self._make_room(len(line), reason):
                        raise OutboxError(
                            f"{self.directory} is full ({MAX_FILES} files or {MAX_BYTES >> 20} MiB): record {row.seq} "
                            f"of class {record_class} stays in the outbox; take files away and import them"
                        )
                    _write(file, line)
                except OSError as error:
                    raise OutboxError(
                        f"{file}: {error.strerror or error}: record {row.seq} of class {record_class} cannot be set "
                        "aside; make room there"
                    ) from error
            if reason == "too-large":
                self._remember(epoch, record_class, row.seq)

    def _remember(self, epoch: str, record_class: str, seq: int) -> None:
        known = self._too_large.get((epoch, record_class), frozenset())
        self._too_large[epoch, record_class] = known | {seq}

    def _make_room(self, size_bytes: int, reason: str) -> bool:
        """Tell whether one more file may be written; a record that alone is more than all may be the only one."""
        sizes = {file: file.stat() for file in self._files()}
        files, total = len(sizes), sum(stat.st_size for stat in sizes.values())
        going: list[Path] = []
        if reason == "unreadable":
            old = [file for file in sizes if file.name.endswith(".unreadable.ndjson")]
            # What is of class critical goes last, the oldest first.
            going = sorted(old, key=lambda file: ("-critical-" in file.name, sizes[file].st_mtime_ns, file.name))
        gone = 0
        while files - gone and (files - gone >= MAX_FILES or total + size_bytes > MAX_BYTES):
            if gone == len(going):
                return False  # nothing is given up in vain
            total -= sizes[going[gone]].st_size
            gone += 1
        for file in going[:gone]:
            log.warning("aside_removed", file=str(file), remedy="take the files away in time")
            file.unlink()
        return True

    def _files(self) -> list[Path]:
        return files_in(self.directory)


def files_in(directory: Path) -> list[Path]:
    """Return the files of a directory of records; none where it is not there, or not to be read."""
    try:
        return [file for file in directory.iterdir() if file.suffix == ".ndjson"]
    except OSError:  # what needs it will say so
        return []


def held_aside(store: Path) -> tuple[int, int]:
    """Return how many records lie beside a store, and their bytes."""
    sizes: list[int] = []
    for file in files_in(side(store, ".aside")):
        with suppress(OSError):  # a technician is just taking it away
            sizes.append(file.stat().st_size)
    return len(sizes), sum(sizes)


def _line(record_class: RecordClass, epoch: str, row: Stored, reason: str, gateway: str) -> bytes:
    fields: dict[str, object] = {
        "gateway": gateway,
        "epoch": epoch,
        "class": record_class,
        "seq": row.seq,
        "kind": row.kind,
        "recorded_at_ns": row.recorded_at_ns,
    }
    if reason == "unreadable":
        fields["damaged_body"] = base64.b64encode(row.body).decode("ascii")
    else:
        fields["body"] = msgspec.Raw(row.body)
    if row.blob:
        fields["blob"] = base64.b64encode(row.blob).decode("ascii")
    return plain_json(msgspec.json.encode(fields)) + b"\n"


def _write(file: Path, content: bytes) -> None:
    """Make a file that is there as a whole or not at all, whenever the power goes."""
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        part.rename(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)
