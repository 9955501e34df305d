"""Bundles of the repository: found in the signed list, fetched to the disk, or relayed to RAUC."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from gateway.osupdate.errors import NotAsAnnouncedError
from gateway.osupdate.offer import OsSays, path_of, says_of
from gateway.osupdate.relay import Relayed, Streamed, relay
from gateway.ota.errors import BadReleaseError, UnreachableError
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Spend
from gateway.ota.fetch_offer import OfferedFile
from gateway.ota.trust_store import make_directory
from gateway.ota.ways import Way

log = structlog.get_logger()

SPARE_BYTES = 64 * 1024 * 1024
"""So much of the disk is left to everybody else."""


@dataclass(frozen=True, slots=True)
class OfferedBundle:
    """A bundle of the signed list."""

    file: OfferedFile
    says: OsSays

    @property
    def can_stream(self) -> bool:
        """Whether it can be believed without having been read from end to end."""
        return self.says.tail_bytes > 0 and self.says.tail_sha256 is not None


class Bundles(Protocol):
    """Where bundles come from. Every method blocks; one thread at a time, but for `stop`."""

    def refresh(self) -> None:
        """Look at the repository. Raises OtaError."""
        ...

    def find(self, compatible: str, version: str) -> OfferedBundle:
        """Return a bundle of the signed list. Raises NotOfferedError, TrustError."""
        ...

    def has_room(self, bundle: OfferedBundle) -> bool:
        """Tell whether the disk can take it."""
        ...

    def fetch(self, bundle: OfferedBundle, progress: Callable[[int], None]) -> Path:
        """Return a bundle's file, fetched and compared. Raises OtaError."""
        ...

    def streamed(self, bundle: OfferedBundle, seen: Relayed) -> AbstractContextManager[str]:
        """Serve a bundle to RAUC while the context lasts; yields the address. Raises OtaError."""
        ...

    def clear(self) -> None:
        """Remove what was fetched."""
        ...

    def stop(self) -> None:
        """Have what is under way end soon, with StoppedError, and so everything until `resume`; any thread."""
        ...

    def resume(self) -> None:
        """Work again after a stop."""
        ...


class RepositoryBundles:
    """The bundles of the repository that models come from, too."""

    def __init__(self, repository: Repository, way: Way, meter: Spend, directory: Path) -> None:
        """Take parts. directory: for what is fetched; nothing else may lie there.

        The repository and the way are this one's own: both belong to one thread at a time.
        """
        self._repository = repository
        self._way = way
        self._meter = meter
        self._directory = directory

    def refresh(self) -> None:
        """See `Bundles.refresh`."""
        self._repository.refresh()

    def find(self, compatible: str, version: str) -> OfferedBundle:
        """See `Bundles.find`."""
        file = self._repository.target(path_of(compatible, version))
        says = says_of(file)
        if says.tail_bytes > file.size_bytes:
            raise BadReleaseError(f"{file.path}: the signature part is longer than the bundle")
        return OfferedBundle(file, says)

    def listed(self, compatible: str) -> list[OfferedBundle]:
        """Return the bundles for a kind of device, verified anew; asks nobody. Raises TrustError."""
        return [OfferedBundle(file, says_of(file)) for file in self._repository.targets(f"os/{compatible}/")]

    def has_room(self, bundle: OfferedBundle) -> bool:
        """See `Bundles.has_room`."""
        make_directory(self._directory)
        status = os.statvfs(self._directory)
        here = sum(file.stat().st_size for file in self._directory.iterdir() if file.is_file())
        return status.f_bavail * status.f_frsize + here > bundle.file.size_bytes + SPARE_BYTES

    def fetch(self, bundle: OfferedBundle, progress: Callable[[int], None]) -> Path:
        """See `Bundles.fetch`."""
        make_directory(self._directory)
        self._sweep(keep=bundle.file.sha256)
        to = self._directory / f"{bundle.file.sha256}.raucb"
        return self._repository.fetch(bundle.file, to, progress)

    @contextmanager
    def streamed(self, bundle: OfferedBundle, seen: Relayed) -> Iterator[str]:
        """See `Bundles.streamed`."""
        says, file = bundle.says, bundle.file
        if says.tail_sha256 is None or not says.tail_bytes:
            raise NotAsAnnouncedError(f"{file.path} was published without what is needed to stream it")
        self._sweep(keep="")
        directory, _, name = file.path.rpartition("/")
        place = f"targets/{directory}/{file.sha256}.{name}"  # TUF §6.2
        try:
            with relay(
                self._way, self._meter, Streamed(place, file.size_bytes, says.tail_bytes, says.tail_sha256), seen
            ) as address:
                yield address
        except OSError as error:
            raise UnreachableError(f"no port on loopback: {error}") from error

    def clear(self) -> None:
        """See `Bundles.clear`."""
        self._sweep(keep="")

    def stop(self) -> None:
        """See `Bundles.stop`."""
        self._repository.stop()

    def resume(self) -> None:
        """See `Bundles.resume`."""
        self._repository.resume()

    def _sweep(self, keep: str) -> None:
        """Remove bundles, and parts of bundles, but one."""
        if not self._directory.is_dir():
            return
        for file in self._directory.iterdir():
            # A part is called `.<digest>.raucb.<first digits of it>.part`.
            if file.is_file() and (not keep or file.name.removeprefix(".").partition(".")[0] != keep):
                file.unlink(missing_ok=True)
                log.info("os_bundle_removed", file=file.name)
