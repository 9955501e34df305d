"""Erases a device for its next owner. Runs as root, early in the boot, before anything uses the data partition.

The order is what makes a power cut harmless: at every moment the disk has either the old partitions whole, or none,
which the first boot makes anew with new keys. The marker on the boot partition has an interrupted erasing done again.

1. the TPM forgets the vault's storage root key (its counter stays, see `tpmobjects`);
2. the marker is written: no way back;
3. `data` and `outbox` leave the partition table;
4. their LUKS key slots are overwritten: from here on nobody opens them, whatever is left on the flash;
5. their blocks are given back to the medium, where it takes them;
6. the claim and the digest of the reset code on the boot partition go, then the marker.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from gateway.appliance.activation import Run
from gateway.appliance.errors import ApplianceError
from gateway.appliance.places import Places
from gateway.appliance.reset import claim_files
from gateway.appliance.volumes import erase_file

log = structlog.get_logger()

PARTITIONS: Final = ("outbox", "data")


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition that will be erased."""

    label: str
    device: Path  # /dev/vda5
    disk: Path  # /dev/vda
    number: int


@dataclass(frozen=True, slots=True)
class Erased:
    """What was done."""

    partitions: tuple[str, ...]
    tpm: str  # "" or why the TPM could not be asked
    not_discarded: tuple[str, ...]  # whose medium keeps the ciphertext


@dataclass(frozen=True, slots=True)
class Eraser:
    """Erases one device; every step may be done again."""

    places: Places
    run: Run
    forget_tpm: Callable[[], str]  # returns "" or what went wrong

    def erase(self) -> Erased:
        """Erase everything that is not the image.

        Raises:
            ApplianceError: a partition could not be made unreadable; to be called again, at the next boot by itself.
        """
        # A TPM that is broken must not keep the disk from being erased: without key slots it has nothing to open.
        tpm = self.forget_tpm()
        if tpm:
            log.warning("tpm_not_forgotten", reason=tpm)
        self._mark()
        found = partitions(self.places)
        for partition in found:
            self._must("sfdisk", "--no-reread", "--no-tell-kernel", "--delete", partition.disk, str(partition.number))
        for partition in found:
            self._must("cryptsetup", "erase", "--batch-mode", partition.device)
        kept: list[str] = []
        for partition in found:
            self._must("wipefs", "--all", "--force", "--quiet", partition.device)
            problem = self.run(["blkdiscard", "--force", str(partition.device)])
            if problem:
                log.warning("partition_not_discarded", partition=partition.label, reason=problem)
                kept.append(partition.label)
        for file in claim_files(self.places.esp):
            try:
                erase_file(file, "Removed by a factory reset.\n")
            except OSError as error:
                raise ApplianceError(f"{file}: {error.strerror or error}; remove it on another machine") from error
        self.places.reset_code.unlink(missing_ok=True)
        self.places.reset_marker.unlink(missing_ok=True)
        _sync(self.places.esp)
        names = tuple(partition.label for partition in found)
        log.warning("device_erased", partitions=names, not_discarded=kept, tpm=tpm or "forgotten")
        return Erased(names, tpm, tuple(kept))

    def _mark(self) -> None:
        marker = self.places.reset_marker
        try:
            with marker.open("wb") as out:
                out.write(b"erasing\n")
                out.flush()
                os.fsync(out.fileno())
            _sync(marker.parent)
        except OSError as error:
            raise ApplianceError(f"{marker}: {error.strerror or error}; nothing was erased yet") from error

    def _must(self, *command: str | Path) -> None:
        words: Sequence[str] = [str(word) for word in command]
        problem = self.run(words)
        if problem:
            raise ApplianceError(f"{' '.join(words)}: {problem}; start the device again to go on erasing")


def partitions(places: Places) -> list[Partition]:
    """Return the partitions that are to be erased and still there.

    Raises:
        ApplianceError: one is on no partitioned disk: this is no appliance.
    """
    found: list[Partition] = []
    for label in PARTITIONS:
        link = places.devices / "disk/by-partlabel" / label
        if not link.exists():
            continue
        device = link.resolve()
        entry = (places.sysfs / "class/block" / device.name).resolve()
        try:
            number = int((entry / "partition").read_text())
        except (OSError, ValueError) as error:
            raise ApplianceError(f"{device} is no partition; only an appliance can be erased") from error
        found.append(Partition(label, device, places.devices / entry.parent.name, number))
    return found


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
