"""Releases on disk: `<directory>/<name>/<version>/manifest.json` and the files that it names.

Whether weights lie here in clear or sealed is nobody's business in this folder: they are handed over by `OpenWeights`,
which answers for their digests.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from gateway.errors import ModelError
from gateway.inference.backend import Weights
from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import MANIFEST_FILE, OVER_THE_AIR_FILE, Artefact, ModelManifest, read_manifest

_VERSION = re.compile(r"^(\d+)\.(\d+)\.(\d+)(?:-([0-9A-Za-z.-]+))?$")
_MANIFEST_MAX_BYTES: Final = 1 << 20
_GOLDEN_MAX_BYTES: Final = 64 << 20
_BLOCK_BYTES: Final = 1 << 20
_UNFINISHED: Final = ".partial"
"""How directories end that are being written; behind a pre-release version it would pass for part of that."""

VersionKey = tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]


def version_key(version: str) -> VersionKey | None:
    """Return a key in the order of semantic versions (§11), None if it is not one: 1.0.0-rc.2 < 1.0.0-rc.10 < 1.0.0."""
    match = _VERSION.match(version)
    if match is None:
        return None
    parts = [part for part in (match[4] or "").split(".") if part]
    ranked = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
    return int(match[1]), int(match[2]), int(match[3]), not parts, ranked


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was found, its manifest read."""

    manifest: ModelManifest
    directory: Path
    origin: Path | None = None  # where the same release lies besides, when `directory` is in the sealed store

    @property
    def label(self) -> str:
        """`name version`, for messages."""
        return f"{self.manifest.name} {self.manifest.version}"

    def verify(self, artefact: Artefact) -> None:
        """Compare an artefact that lies here in clear with the manifest.

        Raises:
            ModelError: it is missing, or its size or digest differ.
        """
        path = self.directory / artefact.file
        digest = hashlib.sha256()
        size = 0
        try:
            with path.open("rb") as file:
                while size <= artefact.size_bytes and (block := file.read(_BLOCK_BYTES)):
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise ModelError(f"model {self.label}: {path} cannot be read: {error.strerror or error}") from error
        if size != artefact.size_bytes:
            raise ModelError(
                f"model {self.label}: {path} should have {artefact.size_bytes} bytes and has "
                f"{'more' if size > artefact.size_bytes else size}: install the release again"
            )
        self._compare(path, digest.hexdigest(), artefact.sha256)

    def read_golden(self, file: str, sha256: str) -> bytes:
        """Read a golden input or output.

        Raises:
            ModelError: it is missing, larger than 64 MiB, or its digest differs from the manifest.
        """
        path = self.directory / file
        try:
            with path.open("rb") as opened:
                content = opened.read(_GOLDEN_MAX_BYTES + 1)  # never a terabyte because somebody put one there
        except OSError as error:
            raise ModelError(
                f"model {self.label}: {path} cannot be read: {error.strerror or error}: install the release again"
            ) from error
        self._compare(path, hashlib.sha256(content).hexdigest(), sha256)
        return content

    def _compare(self, path: Path, found: str, sha256: str) -> None:
        if found != sha256:
            raise ModelError(
                f"model {self.label}: {path} is not the file of this release (sha256 {found[:12]}…, the manifest says "
                f"{sha256[:12]}…): install the release again"
            )


OpenWeights = Callable[[Release, Artefact], Weights]
"""Opens an artefact of a release.

Raises:
    WeightsWithheldError: its key is not given out now.
    ModelError: it is missing, or not what the manifest says.
"""


@dataclass(frozen=True, slots=True)
class Listed:
    """A release directory that was seen, its manifest not read yet."""

    name: str
    version: str
    directory: Path

    @property
    def over_the_air(self) -> bool:
        """Whether it came over the air, and may run only where it is assigned."""
        return (self.directory / OVER_THE_AIR_FILE).exists()


class ReleaseStore:
    """Looks for releases in some directories, among those that ship with the program, and in the sealed store."""

    def __init__(
        self, directories: Sequence[Path] = (), *, packaged: Path | None = None, sealed: Path | None = None
    ) -> None:
        """Take the directories of the configuration; where a version is in two, the first counts.

        Args:
            directories: searched in this order, before the packaged ones.
            packaged: where the releases that ship lie; default `gateway/models`.
            sealed: the sealed store, searched last; but for a release that lies there too, byte for byte the same
                by its manifest, that one is taken.
        """
        shipped = packaged if packaged is not None else Path(str(files("gateway"))) / "models"
        self._sealed = sealed
        self._directories = (*directories, shipped, *((sealed,) if sealed is not None else ()))

    def releases(self) -> list[Listed]:
        """Return what is there, by name and ascending version."""
        found: dict[tuple[str, str], Listed] = {}
        for directory in self._directories:
            for manifest in sorted(directory.glob(f"*/*/{MANIFEST_FILE}")):
                name, version = manifest.parent.parent.name, manifest.parent.name
                if version_key(version) is not None and not version.endswith(_UNFINISHED):
                    found.setdefault((name, version), Listed(name, version, manifest.parent))
        return sorted(found.values(), key=lambda listed: (listed.name, version_key(listed.version) or ()))

    def find(self, wanted: str) -> Release:
        """Return a release by `name` (the newest version) or `name@version`.

        Raises:
            ModelError: there is none, with a list of what there is; or its manifest cannot be used.
        """
        name, _, version = wanted.partition("@")
        releases = self.releases()
        fitting = [
            each
            for each in releases
            if each.name == name and (each.version == version if version else not each.over_the_air)
        ]
        if not fitting:
            there = ", ".join(f"{listed.name}@{listed.version}" for listed in releases) or "nothing"
            searched = ", ".join(str(directory) for directory in self._directories)
            came = any(each.name == name for each in releases) and not version
            why = "; what came over the air runs where it is assigned, or by `gateway ota pin`" if came else ""
            raise ModelError(
                f"model {wanted!r}: not found; there is {there}{why} (searched {searched}). Put a release at "
                f"<directory>/<name>/<version>/{MANIFEST_FILE} and name the directory under models.directories"
            )
        return self._read(fitting[-1])

    def _read(self, listed: Listed) -> Release:
        manifest, document = _read_manifest(listed)
        if self._sealed is not None:
            twin = self._sealed / listed.name / listed.version
            if twin != listed.directory and _bytes_of(twin / MANIFEST_FILE) == document:
                return Release(manifest, twin, listed.directory)
        return Release(manifest, listed.directory)


def _read_manifest(listed: Listed) -> tuple[ModelManifest, bytes]:
    path = listed.directory / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            document = file.read(_MANIFEST_MAX_BYTES)
        manifest = read_manifest(document)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}: install the release again") from error
    except MalformedManifestError as error:
        raise ModelError(f"{path}: {error}: install the release again") from error
    if (manifest.name, manifest.version) != (listed.name, listed.version):
        raise ModelError(
            f"{path} is the manifest of {manifest.name} {manifest.version}: it lies in the wrong directory"
        )
    return manifest, document


def _bytes_of(manifest: Path) -> bytes | None:
    try:
        with manifest.open("rb") as file:
            return file.read(_MANIFEST_MAX_BYTES)
    except OSError:
        return None
