"""From a directory to a release that devices can install: checked, numbered, packed, sealed, signed.

What takes long is done first and changes nothing. Then the files are written under names that nobody refers to, and
at last the metadata, which makes all of them count at once. Killed anywhere before that, the old repository is there;
publishing the same directory again takes up the same token and key.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog
from tuf.api.metadata import Metadata, TargetFile, Targets

from cloud_bridge.config import Registry as Settings
from cloud_bridge.identity.contentkeys import ContentKey, ContentKeys
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.files import read_plain
from cloud_bridge.registry.checks import check_manifest, check_version
from cloud_bridge.registry.errors import (
    Problem,
    RefusedReleaseError,
    RegistryError,
    SignatureMissingError,
    StorageError,
)
from cloud_bridge.registry.ledger import Ledger
from cloud_bridge.registry.opening import Opener
from cloud_bridge.registry.packing import best_patch, pack
from cloud_bridge.registry.release import ReleaseEntry, StoredFile, digest_of, directory_of
from cloud_bridge.registry.repository import Repository
from cloud_bridge.registry.versions import version_key
from cloud_bridge.registry.work import private_work
from cloud_bridge.registry.workshop import Examined, Workshop
from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import MANIFEST_FILE, Artefact, ModelManifest, read_manifest

log = structlog.get_logger()

Running = Callable[[], Mapping[tuple[str, str], int]]
"""Returns which releases run in the fleet, by name and version, with the number of pipelines that run each."""

SEALED: Final = ".sealed"
_MANIFEST_MAX_BYTES: Final = 1 << 20
_FILE_MAX_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a publisher asks for. `accept`: codes of problems that are taken; `gateways`: who gets the content key."""

    candidate: bool = False
    accept: frozenset[str] = frozenset()
    hardware: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    who: str = "operator"


@dataclass(frozen=True, slots=True)
class Base:
    """A release that patches were tried from. `pipelines`: how many run it by their reports; 0: it is the newest."""

    version: str
    pipelines: int


@dataclass(frozen=True, slots=True)
class Publication:
    """What came of it. `is_new`: False when the same release was published before."""

    entry: ReleaseEntry
    is_new: bool
    examined: tuple[Examined, ...] = ()
    accepted: tuple[Problem, ...] = ()
    waiting: str = ""  # for which signatures the metadata waits; empty: devices can install it now
    bases: tuple[Base, ...] = ()  # none where no release could be installed before


@dataclass(frozen=True, slots=True)
class _Piece:
    """A file of the release before it is sealed; `size_bytes` and `sha256` in `custom` are those of the result."""

    name: str
    content: bytes
    custom: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Listed:
    """What came of listing a release. `is_ours`: False when somebody has published the very same meanwhile."""

    waiting: str = ""
    is_ours: bool = True


class Publisher:
    """Publishes releases, one after the other."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        ledger: Ledger,
        keys: ContentKeys,
        *,
        workshop: Workshop,
        running: Running = dict,
    ) -> None:
        """Take the parts. running: which releases the fleet runs, for deltas."""
        self._settings = settings
        self._repository = repository
        self._ledger = ledger
        self._keys = keys
        self._workshop = workshop
        self._running = running
        self.opener = Opener(repository, keys, workshop)

    def publish(self, directory: Path, wishes: Wishes) -> Publication:
        """Publish the release in a directory.

        Raises:
            RefusedReleaseError: it is not good enough; with all reasons.
            RegistryError: it cannot be read, or this version is there with other contents, or was taken back.
            StorageError, BusyError, StoreError: not now; the same call may succeed later.
        """
        try:
            return self._publish(directory, wishes)
        except OSError as error:
            place = error.filename or self._repository.keys.work
            raise StorageError(
                f"{place}: {error.strerror or error}; in {self._repository.keys.work} a release is copied, packed and "
                "sealed, so it needs room for some of it"
            ) from error

    def _publish(self, directory: Path, wishes: Wishes) -> Publication:
        self._repository.load()  # so that what cannot be signed shows before the work
        with private_work(self._repository.keys.work) as work:
            plain = work / "release"
            manifest_bytes = _copy_release(directory, plain)
            manifest = read_manifest(manifest_bytes)
            label = f"{manifest.name} {manifest.version}"
            problems = check_manifest(manifest, self._settings.min_quality_share)
            releases = self._ledger.releases()
            running = self._running()
            if not any(_is_version(one, manifest) and one.published_ns is not None for one in releases):
                problems += check_version(manifest, releases, running)
            examined, found = self._workshop.examine(plain)
            # What is examined is a copy; who publishes has another one.
            problems += [replace(one, message=one.message.replace(str(plain), str(directory))) for one in found]
            refused = [one for one in problems if not (one.acceptable and one.code in wishes.accept)]
            if refused:
                raise RefusedReleaseError(label, refused)
            accepted = tuple(one for one in problems if one not in refused)
            entry = self._reserve(manifest_bytes, wishes, accepted)
            if entry.published_ns is not None:
                return Publication(entry, is_new=False, examined=tuple(examined), accepted=accepted)
            (plain / MANIFEST_FILE).write_bytes(entry.manifest_bytes)
            bases = bases_for(entry.name, self._ledger.releases(), running, self._settings.delta_parents)
            files = self._make_files(entry, work, self._key_of(entry, wishes), bases)
            listed = self._list(entry, files, running)
        if not listed.is_ours:
            return Publication(
                self._ledger.entry(entry.name, entry.version), is_new=False, examined=tuple(examined), accepted=accepted
            )
        self._ledger.note(
            "release-published",
            f"{label}, token {entry.token}"
            + (", candidate" if wishes.candidate else "")
            + (f", accepted {', '.join(sorted({one.code for one in accepted}))}" if accepted else ""),
            wishes.who,
        )
        entry = self._ledger.entry(entry.name, entry.version)
        log.info("release_published", model=label, token=entry.token, state=entry.state, waiting=listed.waiting)
        return Publication(
            entry,
            is_new=True,
            examined=tuple(examined),
            accepted=accepted,
            waiting=listed.waiting,
            bases=tuple(Base(one.version, running.get((one.name, one.version), 0)) for one in bases),
        )

    # ---- preparing -------------------------------------------------------------------------------------------

    def _reserve(self, manifest: bytes, wishes: Wishes, accepted: Iterable[Problem]) -> ReleaseEntry:
        entry = self._ledger.reserve(
            manifest,
            state="candidate" if wishes.candidate else "approved",
            hardware=wishes.hardware,
            accepted=sorted({one.code for one in accepted}),
            floor=_highest_token(self._repository.load().targets),
        )
        _refuse_yanked(entry)
        return entry

    def _key_of(self, entry: ReleaseEntry, wishes: Wishes) -> ContentKey:
        """Return the release's content key, made once for a digest."""
        try:
            return self._keys.create(entry.key_name, entry.digest, wishes.gateways)
        except IdentityError:
            key = self._keys.find(entry.key_name)
            if key.digest != entry.digest:
                raise
            return key

    def _make_files(
        self, entry: ReleaseEntry, work: Path, key: ContentKey, bases: Sequence[ReleaseEntry]
    ) -> list[StoredFile]:
        """Pack, seal and write all files; nobody refers to them yet."""
        plain = work / "release"
        pieces = list(self._pieces(entry, plain, self._opened(bases, work)))
        packed, sealed = work / "packed", work / "sealed"
        packed.mkdir(mode=0o700)
        for piece in pieces:
            (packed / piece.name).write_bytes(piece.content)
        self._workshop.seal(packed, plain / MANIFEST_FILE, key.key, sealed)
        directory = directory_of(entry.name, entry.version)
        files = [
            self._write(
                f"{directory}/{_published_name(piece)}", (sealed / (piece.name + SEALED)).read_bytes(), piece.custom
            )
            for piece in pieces
        ]
        for name in sorted({name for one in entry.manifest.golden for name in (one.input, one.output)}):
            files.append(self._write(f"{directory}/{name}", (plain / name).read_bytes(), {"kind": "golden"}))
        custom = {
            "kind": "manifest",
            "name": entry.name,
            "version": entry.version,
            "token": entry.token,
            "hardware": list(entry.hardware),
        }
        files.append(self._write(f"{directory}/{MANIFEST_FILE}", entry.manifest_bytes, custom))
        return files

    def _write(self, path: str, content: bytes, custom: Mapping[str, Any]) -> StoredFile:
        file = StoredFile(path, len(content), digest_of(content), dict(custom))
        self._repository.storage.write(file.place, content)
        return file

    def _pieces(
        self, entry: ReleaseEntry, plain: Path, bases: Sequence[tuple[ReleaseEntry, Artefact, bytes]]
    ) -> Iterator[_Piece]:
        for artefact in entry.manifest.artefacts:
            content = (plain / artefact.file).read_bytes()
            kind, packed = pack(content)
            facts = {"target": artefact.target, "sha256": artefact.sha256, "size_bytes": artefact.size_bytes}
            name = artefact.file + (".zst" if kind == "zstd" else "")
            yield _Piece(name, packed, {"kind": "artefact", **facts, "packed": kind})
            for base_entry, base_artefact, base in bases:
                if base_artefact.target != artefact.target:
                    continue
                # Also from the very same weights, as where a threshold alone is another: devices have them already.
                patch = best_patch(base, content, len(packed))
                if patch is None:
                    continue
                yield _Piece(
                    f"{artefact.file}.from-{base_entry.version}.patch",
                    patch.content,
                    {
                        "kind": "patch",
                        **facts,
                        "method": patch.method,
                        "base_version": base_entry.version,
                        "base_sha256": base_artefact.sha256,
                    },
                )

    # ---- bases of patches ------------------------------------------------------------------------------------

    def _opened(self, bases: Iterable[ReleaseEntry], work: Path) -> list[tuple[ReleaseEntry, Artefact, bytes]]:
        """Return what devices have, in clear. What cannot be had is left out: a patch is a convenience."""
        found = []
        for base in bases:
            try:
                found += [(base, *opened) for opened in self.opener.artefacts(base, work)]
            except (RegistryError, IdentityError) as error:
                log.warning("delta_base_unusable", model=base.label, error=str(error))
        return found

    # ---- listing ---------------------------------------------------------------------------------------------

    def _list(self, entry: ReleaseEntry, files: Sequence[StoredFile], running: Collection[tuple[str, str]]) -> _Listed:
        """Make the release count, unless it does since this was begun."""
        with self._repository.lock.held() as prolong:
            current = self._repository.load()
            self._ledger.settle(listed_releases(current.targets))  # what a publisher was killed in front of
            there = self._ledger.entry(entry.name, entry.version)
            if there.published_ns is not None and there.digest == entry.digest:
                self._sweep(there, there.files)
                _refuse_yanked(there)
                return _Listed(is_ours=False)
            problems = check_version(entry.manifest, self._ledger.releases(), running)
            if problems:
                raise RefusedReleaseError(entry.label, problems)
            self._ledger.prepared(entry, files)
            draft = self._repository.draft(current)
            without(draft, entry).signed.targets |= {file.path: target_of(file) for file in files}
            try:
                self._repository.commit(current, prolong, targets=draft)
            except SignatureMissingError as waiting:
                return _Listed(str(waiting))
            self._ledger.settle(listed_releases(draft))
        self._sweep(entry, files)
        return _Listed()

    def _sweep(self, entry: ReleaseEntry, files: Sequence[StoredFile]) -> None:
        """Remove what unfinished attempts at this release have left."""
        wanted = {file.place for file in files}
        storage = self._repository.storage
        for path in storage.files(f"targets/{directory_of(entry.name, entry.version)}"):
            if path not in wanted:
                storage.remove(path)
                log.info("leftover_removed", file=path)


def bases_for(
    name: str, releases: Iterable[ReleaseEntry], running: Mapping[tuple[str, str], int], limit: int
) -> list[ReleaseEntry]:
    """Choose what patches are made from: what runs most, then what is newest."""
    offered = [one for one in releases if one.name == name and one.is_offered]
    ranked = sorted(
        offered, key=lambda one: (running.get((name, one.version), 0), version_key(one.version)), reverse=True
    )
    runs = [one for one in ranked if running.get((name, one.version), 0)]
    return (runs or ranked[:1])[:limit]


def _is_version(entry: ReleaseEntry, manifest: ModelManifest) -> bool:
    return (entry.name, entry.version) == (manifest.name, manifest.version)


def _refuse_yanked(entry: ReleaseEntry) -> None:
    if entry.yanked_ns is not None:
        raise RegistryError(
            f"{entry.label} was taken back ({entry.yanked_why or 'no reason given'}): a version "
            "that was yanked stays so; publish it under a higher one"
        )


def target_of(file: StoredFile) -> TargetFile:
    """Return a file as the metadata has it."""
    return TargetFile(
        file.size_bytes, {"sha256": file.sha256}, file.path, unrecognized_fields={"custom": dict(file.custom)}
    )


def listed_releases(targets: Metadata[Targets]) -> dict[tuple[str, str], tuple[StoredFile, ...]]:
    """Return the files that a list of targets has, by name and version of their release."""
    found: dict[tuple[str, str], list[StoredFile]] = {}
    for path, target in targets.signed.targets.items():
        parts = path.split("/")
        if len(parts) == 4 and parts[0] == "models":
            file = StoredFile(path, target.length, target.hashes["sha256"], dict(target.custom or {}))
            found.setdefault((parts[1], parts[2]), []).append(file)
    return {release: tuple(files) for release, files in found.items()}


def _highest_token(targets: Metadata[Targets]) -> int:
    tokens = [int((target.custom or {}).get("token", 0)) for target in targets.signed.targets.values()]
    return max(tokens, default=0)


def _published_name(piece: _Piece) -> str:
    """Return the name in the repository: of the artefact itself, however it is packed inside."""
    name = piece.name.removesuffix(".zst") if piece.custom.get("packed") == "zstd" else piece.name
    return name + SEALED


def _copy_release(directory: Path, to: Path) -> bytes:
    """Copy what the manifest names, so that what is checked is what is published; return the manifest."""
    to.mkdir(mode=0o700)
    content = _read(directory / MANIFEST_FILE, _MANIFEST_MAX_BYTES)
    try:
        manifest = read_manifest(content)
    except MalformedManifestError as error:
        place = f"{directory / MANIFEST_FILE}{_line_of_mistake(content)}"
        raise RegistryError(f"{place}: {error}; correct it there: docs/wire.md says what the fields hold") from error
    (to / MANIFEST_FILE).write_bytes(content)
    for name in sorted(_names_in(manifest)):
        if (directory / name).exists():  # what is missing, the examination names with everything else
            (to / name).write_bytes(_read(directory / name, _FILE_MAX_BYTES))
    return content


def _line_of_mistake(content: bytes) -> str:
    """Tell the line up to which a document is JSON; "" if all of it is, or none."""
    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        return f", line {error.lineno}"
    except (UnicodeDecodeError, RecursionError):
        return ""
    return ""


def _names_in(manifest: ModelManifest) -> set[str]:
    golden = {name for one in manifest.golden for name in (one.input, one.output)}
    return {artefact.file for artefact in manifest.artefacts} | golden


def _read(file: Path, limit: int) -> bytes:
    """Read a plain file, and nothing of one that is too large, or of a pipe, which might never end."""
    try:
        return read_plain(file, limit)
    except OSError as error:
        raise RegistryError(f"{file}: {error.strerror or error}; name the directory of a release") from error


def without(targets: Metadata[Targets], entry: ReleaseEntry) -> Metadata[Targets]:
    """Take a release out of a list of targets that is being changed."""
    directory = directory_of(entry.name, entry.version) + "/"
    for path in [path for path in targets.signed.targets if path.startswith(directory)]:
        del targets.signed.targets[path]
    return targets
