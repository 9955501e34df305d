"""A repository of releases as the device's installer sees it, without metadata: what it offers counts as signed."""

import hashlib
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bsdiff4
import zstandard
from nacl.public import PublicKey, SealedBox

from gateway.ota.errors import NotOfferedError, OtaError
from gateway.ota.fetch_offer import Offer, OfferedFile
from gateway.ota.floor import Floor
from gateway.ota.floor_file import Held
from gateway.vault.aead import KEY_BYTES
from gateway.vault.container import Contents, sealed
from gateway.vault.vault import Vault
from gateway.wire.manifest import MANIFEST_FILE, ModelManifest, read_manifest


@dataclass
class ReleaseRepository:
    """Holds releases, sealed as the registry seals them.

    Knobs:
        packed: compress full files with zstd.
        failing: `refresh` raises this.
        fetching: `fetch` raises this.
        damage: changes the bytes of a container on its way, by path.
        fetched: what was fetched, paths in order.
        brought: paths of what a person has brought: `fetch` needs no link for it, whatever `fetching` says.
        refreshes: how often it was looked at.
        patch_claims: what a patch is said to make, instead of what it is made from (sha256, size).
    """

    directory: Path
    packed: bool = True
    failing: OtaError | None = None
    fetching: OtaError | None = None
    damage: Callable[[str, bytes], bytes] = lambda _path, content: content
    fetched: list[str] = field(default_factory=list)
    brought: set[str] = field(default_factory=set)
    keys: dict[str, bytes] = field(default_factory=dict)  # content keys by digest of the manifest
    labels: dict[str, str] = field(default_factory=dict)
    offers: dict[tuple[str, str], Offer] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)  # artefacts by digest
    stopped: bool = False
    stale_since_ns: int | None = None
    refreshes: int = 0
    floor: Floor | None = None  # of the device

    def publish(
        self, release: Path, *, bases: tuple[str, ...] = (), method: str = "bsdiff4", patch: bytes | None = None
    ) -> Offer:
        """Offer a plain release; `bases` are digests of artefacts to make patches from, `patch` is one by hand."""
        document = (release / MANIFEST_FILE).read_bytes()
        manifest = read_manifest(document)
        digest = hashlib.sha256(document).hexdigest()
        key = self.keys.setdefault(digest, secrets.token_bytes(KEY_BYTES))
        self.labels[digest] = f"{manifest.name} {manifest.version}"
        root = f"models/{manifest.name}/{manifest.version}"
        files: list[OfferedFile] = []
        for golden in manifest.golden:
            for name in (golden.input, golden.output):
                files.append(self._put(f"{root}/{name}", (release / name).read_bytes(), {"kind": "golden"}))
        for artefact in manifest.artefacts:
            plain = (release / artefact.file).read_bytes()
            self.plain[artefact.sha256] = plain
            inside = zstandard.compress(plain) if self.packed else plain
            name = f"{artefact.file}.zst" if self.packed else artefact.file
            custom: dict[str, Any] = {
                "kind": "artefact",
                "target": artefact.target,
                "packed": "zstd" if self.packed else "",
                "sha256": artefact.sha256,
                "size_bytes": artefact.size_bytes,
            }
            container = self._sealed(manifest, digest, key, name, inside)
            files.append(self._put(f"{root}/{artefact.file}.sealed", container, custom))
            for base in bases:
                made = patch if patch is not None else difference(method, self.plain[base], plain)
                name = f"{artefact.file}.from-{base[:8]}.patch"
                custom = {
                    "kind": "patch",
                    "target": artefact.target,
                    "method": method,
                    "base_version": "",
                    "base_sha256": base,
                    "sha256": artefact.sha256,
                    "size_bytes": artefact.size_bytes,
                }
                files.append(
                    self._put(f"{root}/{name}.sealed", self._sealed(manifest, digest, key, name, made), custom)
                )
        offer = Offer(manifest.name, manifest.version, 1, manifest, document, tuple(files))
        self.offers[manifest.name, manifest.version] = offer
        return offer

    def grant(self, vault: Vault) -> None:
        """Hand all content keys to a device, as the bridge does when it attests itself."""
        box = SealedBox(PublicKey(vault.recipient()))
        for digest, key in self.keys.items():
            vault.accept_grant(digest, bytes(box.encrypt(key)), label=self.labels[digest])

    # ---- what the device uses -----------------------------------------------------------------------

    def refresh(self) -> None:
        """Do nothing but count, or fail."""
        self.refreshes += 1
        if self.failing is not None:
            raise self.failing

    def establish(self, fencing_token: int) -> None:
        """Set the floor of updates anew, as after a refresh; only where a test has given it."""
        self.refresh()
        assert self.floor is not None
        self.floor.establish(Held(fencing_token=fencing_token))

    def offer(self, name: str, version: str) -> Offer:
        """Return what was published."""
        if (name, version) not in self.offers:
            raise NotOfferedError(f"{name} {version} is not offered")
        return self.offers[name, version]

    def lacking(self, file: OfferedFile, to: Path) -> int:
        """Return how many bytes would come over the link."""
        return 0 if file.path in self.brought else file.size_bytes

    def fetch(self, file: OfferedFile, to: Path, progress: Callable[[int], None] = lambda _count: None) -> Path:
        """Write a file, damaged or not."""
        self.fetched.append(file.path)
        if self.fetching is not None and file.path not in self.brought:
            raise self.fetching
        to.write_bytes(self.damage(file.path, self.contents[file.path]))
        progress(file.size_bytes)
        return to

    def stop(self) -> None:
        """Remember it."""
        self.stopped = True

    def resume(self) -> None:
        """Remember it."""
        self.stopped = False

    # ---- inside -------------------------------------------------------------------------------------

    def _put(self, path: str, content: bytes, custom: dict[str, Any]) -> OfferedFile:
        self.contents[path] = content
        return OfferedFile(path, len(content), hashlib.sha256(content).hexdigest(), custom)

    @staticmethod
    def _sealed(manifest: ModelManifest, digest: str, key: bytes, file: str, inside: bytes) -> bytes:
        contents = Contents(
            name=manifest.name,
            version=manifest.version,
            release=digest,
            file=file,
            sha256=hashlib.sha256(inside).hexdigest(),
            size_bytes=len(inside),
        )
        return sealed(contents, key, inside, "aes-256-gcm")

    def forget(self) -> None:
        """Remove what was published."""
        shutil.rmtree(self.directory, ignore_errors=True)


def difference(method: str, base: bytes, plain: bytes) -> bytes:
    """Make a patch."""
    if method == "bsdiff4":
        return bytes(bsdiff4.diff(base, plain))
    window = max(20, (len(base) + len(plain)).bit_length())
    prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=window, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=prefix).compress(plain)
