"""Where claims are looked for: the boot partition, what is plugged in, and what cameras see."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from gateway.appliance.errors import ApplianceError
from gateway.appliance.offers import Offer
from gateway.appliance.volumes import Mounter, Volume, erase_file, named_files, volumes
from gateway.wire.claimfile import CLAIM_FILE_NAME, MAX_CLAIM_BYTES

log = structlog.get_logger()

_STEM: Final = CLAIM_FILE_NAME.removesuffix(".yaml")
_NOTE: Final = (
    "The claim in this file was taken by a device and removed here: it was good once.\n"
    "A new one: cloud-bridge identity token create NAME --replace --claim-file sluice-claim.yaml\n"
)


def is_claim_name(name: str) -> bool:
    """Tell whether a file of this name is a claim: `sluice-claim.yaml`, or `sluice-claim-dock-7.yaml`."""
    return name.startswith(_STEM) and name.endswith((".yaml", ".yml"))


@dataclass(frozen=True, slots=True)
class FolderFinder:
    """Looks into a folder that is there anyway: the boot partition, or a folder that a person names."""

    folder: Path
    words: str

    def offers(self) -> Iterator[Offer]:
        """See `Finder.offers`."""
        if not self.folder.is_dir():
            return
        for name, content in named_files(self.folder, is_claim_name, MAX_CLAIM_BYTES):
            yield Offer(f"{self.words}, {name}", content, partial(_erase, self.folder / name))


@dataclass(slots=True)
class OnceFinder:
    """Looks at a place once and remembers: nobody writes onto the boot partition of a device that runs.

    Mounted again at each look it would never be clean when the power goes.
    """

    finder: FolderFinder
    _found: list[Offer] | None = None

    @property
    def words(self) -> str:
        """See `Finder.words`."""
        return self.finder.words

    def offers(self) -> Iterator[Offer]:
        """See `Finder.offers`."""
        if self._found is None:
            self._found = list(self.finder.offers())
        yield from self._found


@dataclass(slots=True)
class VolumeFinder:
    """Looks at removable media; each is mounted for as long as its files are read."""

    devices: Path
    sysfs: Path
    mounter: Mounter
    words: str = "USB sticks and cards (FAT, exFAT, ext4)"
    _unreadable: frozenset[str] = frozenset()

    def offers(self) -> Iterator[Offer]:
        """See `Finder.offers`."""
        unreadable: set[str] = set()
        for volume in volumes(self.devices, self.sysfs):
            try:
                with self.mounter.mounted(volume, writable=False) as top:
                    found = list(named_files(top, is_claim_name, MAX_CLAIM_BYTES))
            except ApplianceError as error:
                if volume.words not in self._unreadable:
                    log.warning("volume_unreadable", volume=volume.words, error=str(error))
                unreadable.add(volume.words)
                continue
            for name, content in found:
                yield Offer(f"{volume.words}, {name}", content, partial(self._erase, volume, name))
        self._unreadable = frozenset(unreadable)

    def _erase(self, volume: Volume, name: str) -> str:
        try:
            with self.mounter.mounted(volume, writable=True) as top:
                return _erase(top / name)
        except ApplianceError as error:
            return str(error)


@dataclass(frozen=True, slots=True)
class CameraFinder:
    """Looks for QR codes in what the cameras see."""

    look: Callable[[], Iterator[tuple[str, str]]]  # gives camera and text
    words: str = "cameras (show the QR code)"

    def offers(self) -> Iterator[Offer]:
        """See `Finder.offers`."""
        for camera, text in self.look():
            yield Offer(f"camera {camera}", text, lambda: "")  # nothing is left of a picture


def _erase(file: Path) -> str:
    try:
        erase_file(file, _NOTE)
    except OSError as error:
        return error.strerror or str(error)
    return ""
