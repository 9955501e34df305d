"""Releases whose weights lie sealed: `<state>/models/<name>/<version>/`.

Manifest, golden inputs and everything else lies there as it came; each artefact lies as `<file>.sealed` alone. The
manifest is the signed one of the plain release, so nothing about it changes by sealing. A release that was found
damaged is kept for a look in `<state>/models-damaged/<name>-<version>/`, the last few of them.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from gateway.vault.aead import Algorithm
from gateway.vault.container import Contents, Sealer, chunks_of, new_header
from gateway.vault.errors import DamagedContainerError, VaultError, WrongKeyError
from gateway.vault.files import put_in_place, remove_directory, sync_directory
from gateway.vault.weights import header_of, open_sealed
from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import MANIFEST_FILE, OVER_THE_AIR_FILE, Artefact, ModelManifest, read_manifest

log = structlog.get_logger()

SEALED_SUFFIX: Final = ".sealed"
_PARTIAL_SUFFIX: Final = ".partial"  # no semantic version, so nobody takes it for a release
_MANIFEST_MAX_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 1 << 20
MAX_ASIDE: Final = 2
"""So many damaged releases are kept: each takes as much of the disk as the one in its place."""


@dataclass(frozen=True, slots=True)
class ReleaseDirectory:
    """A release on disk, plain or sealed."""

    directory: Path
    manifest: ModelManifest
    digest: str  # SHA-256 of manifest.json, which names the digests of all other files

    @property
    def label(self) -> str:
        """`name version`, for messages."""
        return f"{self.manifest.name} {self.manifest.version}"

    def sealed_file(self, artefact: Artefact) -> Path:
        """Return where an artefact lies sealed."""
        return self.directory / (artefact.file + SEALED_SUFFIX)

    @property
    def is_sealed(self) -> bool:
        """Whether every artefact lies there sealed."""
        return all(self.sealed_file(artefact).is_file() for artefact in self.manifest.artefacts)


def read_release(directory: Path) -> ReleaseDirectory:
    """Read the manifest of a release.

    Raises:
        VaultError: there is none, or it cannot be used.
    """
    file = directory / MANIFEST_FILE
    try:
        with file.open("rb") as opened:
            document = opened.read(_MANIFEST_MAX_BYTES)
        return ReleaseDirectory(directory, read_manifest(document), hashlib.sha256(document).hexdigest())
    except OSError as error:
        raise VaultError(
            f"{file} cannot be read: {error.strerror or error}; name the directory of a release"
        ) from error
    except MalformedManifestError as error:
        raise VaultError(f"{file}: {error}") from error


class SealedStore:
    """The sealed releases of this device."""

    def __init__(self, directory: Path) -> None:
        """Take `<state>/models`; made when something is put in."""
        self.directory = directory
        self.aside = directory.with_name(f"{directory.name}-damaged")

    def releases(self) -> Iterator[ReleaseDirectory]:
        """Yield what is there, by name and version; what cannot be read is left out."""
        for manifest in sorted(self.directory.glob(f"*/*/{MANIFEST_FILE}")):
            if not manifest.parent.name.endswith(_PARTIAL_SUFFIX):
                with contextlib.suppress(VaultError):
                    yield read_release(manifest.parent)

    def remove_leftovers(self) -> None:
        """Remove what was not finished when its program was killed. The caller holds the vault's lock."""
        for partial in self.directory.glob(f"*/*{_PARTIAL_SUFFIX}"):
            log.info("partial_release_removed", directory=str(partial))
            remove_directory(partial)

    def put(
        self, plain: ReleaseDirectory, content_key: bytes, algorithm: Algorithm, *, damage: str = ""
    ) -> ReleaseDirectory:
        """Seal a plain release into the store; the plain one stays where it is.

        What lies there already is replaced when it is damaged, and when it does not open with the key, because it is
        sealed under a vault that was given up. Nothing of it is touched before the new one is whole.

        Args:
            plain: the release.
            content_key: 32 bytes.
            algorithm: of the container.
            damage: what is known to be wrong with the one that lies there, which is put aside then.

        Raises:
            VaultError: a file is not what the manifest says, or this version is there with another manifest.
        """
        if not damage:
            damage = self._drop_unusable(plain, content_key)
        return self._install(plain, lambda to: _seal_into(plain, to, content_key, algorithm), damage)

    def _drop_unusable(self, plain: ReleaseDirectory, content_key: bytes) -> str:
        """Return what is wrong within the containers that are there; remove them where their key is lost."""
        target = self.place_of(plain)
        if not target.exists() or target.samefile(plain.directory):
            return ""
        there = read_release(target)
        if not there.is_sealed or there.digest != plain.digest:
            return ""
        try:
            for artefact in there.manifest.artefacts:
                open_sealed(there.sealed_file(artefact), content_key, sha256=artefact.sha256).close()
        except WrongKeyError as error:
            log.warning("sealed_release_replaced", directory=str(target), reason=str(error))
            remove_directory(target)
        except DamagedContainerError as error:
            return str(error)
        return ""

    def place_of(self, release: ReleaseDirectory) -> Path:
        """Return where a release lies in the store, or would."""
        return self.directory / release.manifest.name / release.manifest.version

    def put_aside(self, name: str, version: str, damage: str) -> Path:
        """Take a damaged release out of the store, and keep it for a look; returns where.

        Raises:
            VaultError: the disk refuses.
        """
        source, to = self.directory / name / version, self.aside / f"{name}-{version}"
        try:
            self.aside.mkdir(parents=True, exist_ok=True, mode=0o700)
            remove_directory(to)
            source.rename(to)
            os.utime(to)
            sync_directory(self.aside)
            sync_directory(source.parent)
            kept = sorted(self.aside.iterdir(), key=lambda each: each.stat().st_mtime_ns)
            for each in kept[:-MAX_ASIDE]:
                remove_directory(each)
        except OSError as error:
            raise VaultError(f"{source} is damaged and cannot be put aside: {error.strerror or error}") from error
        log.warning("sealed_release_put_aside", directory=str(source), kept_as=str(to), reason=damage)
        return to

    def take(self, sealed: ReleaseDirectory, *, damage: str = "") -> ReleaseDirectory:
        """Copy a release that came sealed into the store; `damage` as for `put`.

        Raises:
            VaultError: it is not complete, or this version is there with another manifest.
        """
        return self._install(sealed, lambda to: _copy_into(sealed, to), damage)

    def add(
        self, release: ReleaseDirectory, artefact: Artefact, plain: memoryview, content_key: bytes, algorithm: Algorithm
    ) -> ReleaseDirectory:
        """Seal one artefact into the store, with everything of the release that is no weights.

        What lies there and is damaged must have been put aside.

        Raises:
            VaultError: the bytes are not what the manifest says, this version is there with another manifest, or the
                disk refuses.
        """
        if hashlib.sha256(plain).hexdigest() != artefact.sha256:
            raise VaultError(f"what was made for {release.label}, {artefact.file} is not the file of this release")
        target = self.place_of(release)
        partial = target.with_name(target.name + _PARTIAL_SUFFIX)
        sealer = Sealer(new_header(_contents_of(release, artefact), content_key, algorithm), content_key)
        try:
            if target.exists():
                self._require_same(release, target)
                part = target / f".{artefact.file}.part"
                _write_sealed(part, plain, sealer)
                _copy_the_rest(release, target)
                part.replace(release_file(target, artefact))
                sync_directory(target)
                return read_release(target)
            remove_directory(partial)
            partial.mkdir(parents=True)
            _write_sealed(release_file(partial, artefact), plain, sealer)
            _copy_the_rest(release, partial)
            (partial / OVER_THE_AIR_FILE).touch()
            put_in_place(partial, target)
            sync_directory(self.directory)
        except OSError as error:
            raise VaultError(f"{target}: {error.strerror or error}") from error
        return read_release(target)

    def remove(self, name: str, version: str) -> None:
        """Remove a release: first its name, so that what is left of it after a power cut is nobody's release."""
        target = self.directory / name / version
        partial = target.with_name(target.name + _PARTIAL_SUFFIX)
        if not target.exists():
            return
        try:
            remove_directory(partial)
            target.rename(partial)
            sync_directory(partial.parent)
        except OSError as error:
            raise VaultError(f"{target} cannot be removed: {error.strerror or error}") from error
        remove_directory(partial)

    @staticmethod
    def _require_same(release: ReleaseDirectory, target: Path) -> None:
        if read_release(target).digest != release.digest:
            raise VaultError(f"{target} holds another {release.label}: a version is never changed, choose a new one")

    def _install(self, release: ReleaseDirectory, fill: Callable[[Path], None], damage: str = "") -> ReleaseDirectory:
        target = self.place_of(release)
        if target.exists() and not damage:
            there = read_release(target)
            if there.digest != release.digest:
                raise VaultError(
                    f"{target} holds another {release.label}: a version is never changed, choose a new one"
                )
            if there.is_sealed:
                return there
        partial = target.with_name(target.name + _PARTIAL_SUFFIX)
        try:
            remove_directory(partial)
            partial.mkdir(parents=True)
            fill(partial)
            if damage and target.exists():
                self.put_aside(release.manifest.name, release.manifest.version, damage)
            remove_directory(target)  # only ever one that was not complete
            put_in_place(partial, target)
            sync_directory(self.directory)
        except OSError as error:
            raise VaultError(f"{partial}: {error.strerror or error}") from error
        return read_release(target)


def release_file(directory: Path, artefact: Artefact) -> Path:
    """Return where an artefact lies sealed in the directory of its release."""
    return directory / (artefact.file + SEALED_SUFFIX)


def _contents_of(release: ReleaseDirectory, artefact: Artefact) -> Contents:
    return Contents(
        name=release.manifest.name,
        version=release.manifest.version,
        release=release.digest,
        file=artefact.file,
        sha256=artefact.sha256,
        size_bytes=artefact.size_bytes,
    )


def _write_sealed(to: Path, plain: memoryview, sealer: Sealer) -> None:
    with to.open("wb") as sealed:
        sealed.write(sealer.start)
        for chunk in chunks_of(plain):
            sealed.write(sealer.seal(chunk))
        sealed.flush()
        os.fsync(sealed.fileno())


def _seal_into(plain: ReleaseDirectory, to: Path, content_key: bytes, algorithm: Algorithm) -> None:
    for artefact in plain.manifest.artefacts:
        _seal_file(plain, artefact, to / (artefact.file + SEALED_SUFFIX), content_key, algorithm)
    _copy_the_rest(plain, to)


def _seal_file(plain: ReleaseDirectory, artefact: Artefact, to: Path, content_key: bytes, algorithm: Algorithm) -> None:
    """Seal one artefact, and check it against the manifest on the way."""
    contents = Contents(
        name=plain.manifest.name,
        version=plain.manifest.version,
        release=plain.digest,
        file=artefact.file,
        sha256=artefact.sha256,
        size_bytes=artefact.size_bytes,
    )
    source = plain.directory / artefact.file
    sealer = Sealer(new_header(contents, content_key, algorithm), content_key)
    digest = hashlib.sha256()
    left = artefact.size_bytes
    with source.open("rb") as file, to.open("xb") as sealed:
        if os.fstat(file.fileno()).st_size != artefact.size_bytes:
            raise VaultError(f"{source} has not the size that the manifest says: fetch the release again")
        sealed.write(sealer.start)
        while left:
            block = file.read(min(_BLOCK_BYTES, left))
            if not block:
                raise VaultError(f"{source} became shorter while it was read")
            digest.update(block)
            left -= len(block)
            for chunk in chunks_of(memoryview(block)):
                sealed.write(sealer.seal(chunk))
        sealed.flush()
        os.fsync(sealed.fileno())
    if digest.hexdigest() != artefact.sha256:
        raise VaultError(f"{source} is not the file of this release (digest): fetch the release again")


def _copy_into(sealed: ReleaseDirectory, to: Path) -> None:
    for artefact in sealed.manifest.artefacts:
        source = sealed.sealed_file(artefact)
        header = header_of(source)
        if (header.release, header.file, header.sha256) != (sealed.digest, artefact.file, artefact.sha256):
            raise DamagedContainerError(f"{source} belongs to another release: fetch the release again")
        _copy(source, to / source.name)
    _copy_the_rest(sealed, to)


def _copy_the_rest(release: ReleaseDirectory, to: Path) -> None:
    """Copy everything but weights."""
    weights = {artefact.file for artefact in release.manifest.artefacts}
    for source in sorted(release.directory.iterdir()):
        there = to / source.name
        if source.is_file() and source.name not in weights and not source.name.endswith(SEALED_SUFFIX):
            part = to / f".{source.name}.part"
            part.unlink(missing_ok=True)  # of a copy that was killed
            _copy(source, part)
            part.replace(there)  # whoever reads it meanwhile, or finds it after a kill, finds it whole


def _copy(source: Path, to: Path) -> None:
    with source.open("rb") as file, to.open("xb") as copy:
        shutil.copyfileobj(file, copy, _BLOCK_BYTES)
        copy.flush()
        os.fsync(copy.fileno())
