"""A published release in clear again: read as it was signed, unsealed, and held against its manifest."""

from dataclasses import replace
from pathlib import Path

from cloud_bridge.identity.contentkeys import ContentKeys
from cloud_bridge.registry.errors import DistrustedError, RegistryError
from cloud_bridge.registry.packing import unpack
from cloud_bridge.registry.release import ReleaseEntry, StoredFile, digest_of
from cloud_bridge.registry.repository import Repository
from cloud_bridge.registry.workshop import Workshop
from gateway.wire.manifest import MANIFEST_FILE, Artefact


class Opener:
    """Opens releases of one repository. Blocking; what it writes lies below the directory that it is given."""

    def __init__(self, repository: Repository, keys: ContentKeys, workshop: Workshop) -> None:
        """Take where the files lie, where their keys lie, and what unseals them."""
        self._repository = repository
        self._keys = keys
        self._workshop = workshop

    def artefacts(self, entry: ReleaseEntry, work: Path) -> list[tuple[Artefact, bytes]]:
        """Return the weights of a release, each as its manifest says.

        Raises:
            DistrustedError: a file is not the one that was published.
            RegistryError: it cannot be unsealed, or is not what the manifest says.
            IdentityError: its content key is not here any more.
            StorageError: the store cannot be read now.
        """
        sealed, plain = work / f"sealed-{entry.token}", work / f"plain-{entry.token}"
        sealed.mkdir(mode=0o700)
        files = [file for file in entry.files if file.custom.get("kind") == "artefact"]
        for file in files:
            (sealed / _name_of(file)).write_bytes(self._read(file))
        self._workshop.unseal(sorted(sealed.iterdir()), self._keys.find(entry.key_name).key, plain)
        opened = []
        for file in files:
            artefact = entry.manifest.artefact(file.custom["target"])
            if artefact is None:
                continue
            packed = str(file.custom["packed"])
            inside = (plain / (artefact.file + (".zst" if packed == "zstd" else ""))).read_bytes()
            content = unpack(packed, inside, artefact.size_bytes)
            if digest_of(content) != artefact.sha256:
                raise RegistryError(f"{artefact.file} of {entry.label} is not what its manifest says")
            opened.append((artefact, content))
        return opened

    def release(self, entry: ReleaseEntry, signed: tuple[StoredFile, ...], work: Path) -> Path:
        """Write a release in clear as it was before it was published; return its directory.

        Args:
            entry: what the ledger knows of it.
            signed: its files as the verified metadata lists them; these count.
            work: a directory that nobody else can read.

        Raises:
            DistrustedError: the ledger and the signed metadata speak of different releases; or as `artefacts`.
            RegistryError, IdentityError, StorageError: as `artefacts`.
        """
        by_name = {_name_of(file): file for file in signed}
        manifest_file = by_name.get(MANIFEST_FILE)
        if manifest_file is None or manifest_file.sha256 != entry.digest:
            raise DistrustedError(f"{entry.label}: the signed metadata has another manifest than the database")
        place = work / "release"
        place.mkdir(mode=0o700)
        (place / MANIFEST_FILE).write_bytes(self._read(manifest_file))
        for name in {name for golden in entry.manifest.golden for name in (golden.input, golden.output)}:
            if name not in by_name:
                raise DistrustedError(f"{entry.label}: {name} of its manifest is not in the signed metadata")
            (place / name).write_bytes(self._read(by_name[name]))
        for artefact, content in self.artefacts(replace(entry, files=signed), work):
            (place / artefact.file).write_bytes(content)
        return place

    def _read(self, file: StoredFile) -> bytes:
        content = self._repository.storage.read(file.place)
        if digest_of(content) != file.sha256:
            raise DistrustedError(f"{file.place} is not the file that was signed: restore the store")
        return content


def _name_of(file: StoredFile) -> str:
    return file.path.rpartition("/")[2]
