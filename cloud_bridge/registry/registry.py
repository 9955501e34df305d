"""The registry as the rest of the bridge sees it."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from tuf.api.metadata import Metadata, Targets

from cloud_bridge.config import Registry as Settings
from cloud_bridge.identity.component import Identities
from cloud_bridge.identity.database import Clock
from cloud_bridge.osbundles.ledger import BundleLedger
from cloud_bridge.registry.checks import check_version, in_order
from cloud_bridge.registry.errors import (
    DistrustedError,
    NotFoundError,
    RefusedReleaseError,
    RegistryError,
    StorageError,
)
from cloud_bridge.registry.keys import KeyDirectory
from cloud_bridge.registry.ledger import Ledger
from cloud_bridge.registry.lock import Lock
from cloud_bridge.registry.publishing import Publication, Publisher, Running, Wishes, listed_releases, without
from cloud_bridge.registry.release import ReleaseEntry, StoredFile, digest_of
from cloud_bridge.registry.repository import Repository
from cloud_bridge.registry.roles import Signed
from cloud_bridge.registry.storage import Storage
from cloud_bridge.registry.work import private_work
from cloud_bridge.registry.workshop import ChildWorkshop, Workshop
from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import MANIFEST_FILE, ModelManifest, read_manifest

log = structlog.get_logger()

_PATH: Final = re.compile(
    r"metadata/(timestamp|[1-9]\d{0,9}\.(root|snapshot|targets))\.json"
    r"|targets/os/[a-z0-9][a-z0-9-]{0,62}/[0-9A-Za-z][0-9A-Za-z.-]{0,127}/[0-9a-f]{64}\.bundle\.raucb"
    r"|targets/models/[a-z0-9][a-z0-9-]{0,62}/[0-9A-Za-z][0-9A-Za-z.-]{0,127}/[0-9a-f]{64}\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,250}"
)
"""What may be asked for: metadata and targets by their exact form. No segment can begin with a dot."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a look at the metadata has done."""

    signed: Signed
    renewed: bool
    settled: tuple[ReleaseEntry, ...]  # releases whose state was brought in line with what is signed


class Registry:
    """Releases, and the repository they lie in. Blocking; safe to use from any thread."""

    def __init__(
        self,
        settings: Settings,
        identities: Identities,
        *,
        clock: Clock,
        running: Running = dict,
        workshop: Workshop | None = None,
        storage: Storage | None = None,
        lock: Callable[[Ledger, Path], Lock] = Lock,
    ) -> None:
        """Take the parts; see `open`."""
        self.settings = settings
        self.keys = KeyDirectory(settings.keys)
        self.ledger = Ledger(identities.database, clock)
        self.storage = storage or Storage(settings.url)
        self.repository = Repository(
            self.storage,
            self.keys,
            settings,
            self.ledger,
            clock=clock,
            lock=lock(self.ledger, self.keys.lock_file),
        )
        self._bundles = BundleLedger(identities.database, clock)
        self._content_keys = identities.keys
        self._running = running
        self._publisher = Publisher(
            settings,
            self.repository,
            self.ledger,
            identities.keys,
            workshop=workshop or ChildWorkshop(settings.check_seconds, settings.check_memory_bytes),
            running=running,
        )

    @classmethod
    def open(cls, settings: Settings, identities: Identities, *, clock: Clock, running: Running = dict) -> "Registry":
        """Open the registry; that there is a repository is not asked before it is needed.

        Args:
            settings: section `registry`.
            identities: of `open_identities`: its database and its content keys are used.
            clock: nanoseconds since 1970, UTC.
            running: returns which releases the fleet runs, by name and version, with how many; patches are made from
                those.

        Raises:
            ConfigError: the store's URL cannot be used.
            StoreError: the database cannot be used now.
        """
        return cls(settings, identities, clock=clock, running=running)

    # ---- reading ---------------------------------------------------------------------------------------------

    def releases(self) -> list[ReleaseEntry]:
        """Return all releases that were published, those taken back too, by name and ascending version."""
        return [one for one in self.ledger.releases() if one.published_ns is not None]

    def unsigned(self) -> list[ReleaseEntry]:
        """Return releases that are not published: they wait for a signature, or their publisher was killed."""
        return [one for one in self.ledger.releases() if one.published_ns is None]

    def entry(self, name: str, version: str) -> ReleaseEntry:
        """Return one release.

        Raises:
            NotFoundError: there is none.
        """
        return self.ledger.entry(name, version)

    def newest(self, name: str) -> ReleaseEntry | None:
        """Return the release of a name with the highest version that devices can install."""
        offered = [one for one in self.releases() if one.name == name and one.is_offered]
        return offered[-1] if offered else None

    def in_order(self, name: str) -> list[ReleaseEntry]:
        """Return the releases of a name that a new one must follow, by ascending version."""
        return in_order(name, self.ledger.releases(), self._running())

    @contextmanager
    def in_clear(self, entry: ReleaseEntry) -> Iterator[Path]:
        """Give the directory of a published release as it was before it was sealed; it is gone afterwards.

        Raises:
            RegistryError: the signed metadata does not list it, or it is not what was signed.
            IdentityError: its content key is not here any more.
            StorageError: the store cannot be read now.
        """
        signed = listed_releases(self.repository.load().targets).get((entry.name, entry.version))
        if signed is None:
            raise RegistryError(f"{entry.label} is not in the signed list of releases, so it cannot be opened")
        with private_work(self.keys.work) as work:
            yield self._publisher.opener.release(entry, signed, work)

    def extract(self, entry: ReleaseEntry, to: Path, *, who: str = "operator") -> Path:
        """Write a release in clear, its manifest as signed, into <to>/<name>/<version>; return that directory.

        It is noted before anything is written: whoever reads the directory has the weights.

        Raises:
            RegistryError: it was taken back or is not published, or something lies there already; or as `in_clear`.
            IdentityError, StorageError: as `in_clear`, or the directory cannot be written.
        """
        place = to / entry.name / entry.version
        if not entry.is_offered:
            state = "taken back" if entry.yanked_ns is not None else "not published"
            raise RegistryError(f"{entry.label} is {state}, so no device can install it")
        try:
            is_there = place.exists()
        except OSError as error:
            raise StorageError(f"{place}: {error.strerror or error}; name another directory") from error
        if is_there:
            raise RegistryError(f"{place} is there already; remove it, or name another directory")
        with self.in_clear(entry) as plain:
            self.ledger.note("release-extracted", f"{entry.label}, in clear, into {place}", who)
            partial = place.with_name(f".{entry.version}.partial")
            try:
                partial.mkdir(parents=True, mode=0o700)
                for file in sorted(plain.iterdir()):
                    shutil.copyfile(file, partial / file.name)
                partial.rename(place)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise StorageError(f"{place}: {error.strerror or error}") from error
        log.info("release_extracted", model=entry.label, who=who)
        return place

    def require_next(self, manifest: ModelManifest) -> None:
        """Check that a release with this name and version could be published now, before it is made.

        Raises:
            RefusedReleaseError: the version does not follow those that are published.
            NotInitialisedError, DistrustedError, StorageError: nothing can be published now.
        """
        self.repository.load()
        problems = check_version(manifest, self.ledger.releases(), self._running())
        if problems:
            raise RefusedReleaseError(f"{manifest.name} {manifest.version}", problems)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a file of the repository, such as `metadata/timestamp.json`.

        Raises:
            NotFoundError: there is no such file, or it is none that a device may ask for.
            StorageError: it cannot be read now.
        """
        return self.storage.read(checked_path(path), offset, length)

    def size(self, path: str) -> int:
        """Return how many bytes a file of the repository has; raises as `read`."""
        return self.storage.size(checked_path(path))

    # ---- changing --------------------------------------------------------------------------------------------

    def publish(
        self,
        directory: Path,
        *,
        candidate: bool = False,
        accept: frozenset[str] = frozenset(),
        hardware: tuple[str, ...] = (),
        gateways: tuple[str, ...] = (),
        who: str = "operator",
    ) -> ReleaseEntry:
        """Publish the release in a directory; one that is published already, the same, is returned as it is.

        Args:
            directory: with its manifest.json; what is published is a copy.
            candidate: it waits for `approve`, or for a rollout that says so.
            accept: codes of problems that are overruled, see `Problem.acceptable`.
            hardware: which devices may install it; empty: any.
            gateways: which may have its content key; empty: any.
            who: for the events.

        Raises:
            RefusedReleaseError: it is not good enough; with all reasons.
            RegistryError: it cannot be read, or this version is there with other contents, or was taken back.
            StorageError, BusyError, StoreError: not now; the same call may succeed later.
        """
        return self.publication(directory, Wishes(candidate, accept, hardware, gateways, who)).entry

    def publication(self, directory: Path, wishes: Wishes) -> Publication:
        """Publish as `publish` does, and tell all about it."""
        return self._publisher.publish(directory, wishes)

    def yank(self, name: str, version: str, why: str, *, who: str = "operator") -> ReleaseEntry:
        """Take a release back: it is listed no more, so no device can install it. Where it runs, it goes on.

        Raises:
            NotFoundError: there is no such release.
            RegistryError: it is not published.
            SignatureMissingError: the key of the targets is elsewhere; what to sign is staged.
        """
        entry = self.entry(name, version)
        if entry.yanked_ns is not None:
            return entry
        if entry.published_ns is None:
            raise RegistryError(f"{entry.label} is not published, so there is nothing to take back")
        self.ledger.explain_yank(entry, why)
        self.ledger.note("release-yanked", f"{entry.label}: {why}", who)
        with self.repository.lock.held() as prolong:
            current = self.repository.load()
            draft = without(self.repository.draft(current), entry)
            self.repository.commit(current, prolong, targets=draft)
            self._settle(draft)
        log.info("release_yanked", model=entry.label, why=why)
        return self.entry(name, version)

    def approve(self, name: str, version: str, *, who: str = "operator") -> ReleaseEntry:
        """Make a candidate an approved release; one that is approved already stays so.

        Raises:
            NotFoundError: there is no such release.
            RegistryError: it is taken back, or not published.
        """
        entry = self.entry(name, version)
        if not entry.is_offered:
            state = "taken back" if entry.yanked_ns is not None else "not published"
            raise RegistryError(f"{entry.label} is {state}, so it cannot be approved")
        if entry.state == "candidate":
            self.ledger.approve(entry, who)
            self.ledger.note("release-approved", entry.label, who)
            log.info("release_approved", model=entry.label, who=who)
        return self.entry(name, version)

    def refresh(self, *, force: bool = False, targets: bool = False, take_older: str = "") -> Refreshed:
        """Sign what is past half of its life, and bring the states of the releases in line with what is signed.

        The list of targets is signed anew as long as its key is here; where it is not, a person must ask for it.

        Args:
            force: sign in any case.
            targets: the list of targets, too; it waits for its key if that is elsewhere.
            take_older: why an older copy of the repository is to count, which is refused otherwise.

        Raises:
            NotInitialisedError: there is no repository.
            SignatureMissingError: a key that is needed is elsewhere.
            DistrustedError: the repository is not the one that was signed last.
            BusyError: something is to change, and somebody else holds the repository for too long.
        """
        force = force or targets or bool(take_older)
        current = self.repository.load(as_it_is=take_older)
        renewed = force or self.repository.is_due(current)
        if renewed:
            with self.repository.lock.held() as prolong:
                current = self.repository.load(as_it_is=take_older)
                if force or self.repository.is_due(current):
                    # Clients have seen higher versions of all three after an older copy was put back.
                    again = targets or bool(take_older) or self.repository.targets_due(current)
                    draft = self.repository.draft(current) if again else None
                    current = self.repository.commit(current, prolong, targets=draft)
                settled = self._settle(current.targets)
            if take_older:
                self.ledger.note("registry-older-taken", take_older)
            log.info("registry_metadata_renewed", timestamp=current.timestamp.signed.version)
        elif self._is_settled(current.targets):
            settled = []
        else:
            # With the lock, and what counts then: since this was read, somebody may have published more, and to hold
            # the states against an older list would take that back.
            with self.repository.lock.held():
                current = self.repository.load()
                settled = self._settle(current.targets)
        return Refreshed(current, renewed, tuple(settled))

    def revoke_key(self, entry: ReleaseEntry) -> None:
        """Give the content key of a release to nobody any more; who has it keeps it until the lease ends.

        Raises:
            IdentityError: it has none.
        """
        self._content_keys.revoke(entry.key_name)

    def export(self, to: Path) -> int:
        """Write the repository into a directory as it counts now, for a stick; return how many bytes it has.

        Metadata goes last, as in a publication.

        Raises:
            StorageError: the directory cannot be written.
            DistrustedError, NotInitialisedError: as `refresh`.
        """
        current = self.repository.load()
        count = 0
        paths = [file.place for files in listed_releases(current.targets).values() for file in files]
        bundles = [path for path in current.targets.signed.targets if path.startswith("os/")]
        paths += [self._place(path, current.targets.signed.targets[path].hashes["sha256"]) for path in bundles]
        paths += [f"metadata/{version}.root.json" for version in range(1, current.root.signed.version + 1)]
        paths += [f"metadata/{current.snapshot.signed.meta['targets.json'].version}.targets.json"]
        paths += [f"metadata/{current.timestamp.signed.snapshot_meta.version}.snapshot.json"]
        paths += ["metadata/timestamp.json"]
        out = Storage(str(to.absolute()))
        for path in paths:
            content = self.storage.read(path)
            out.write(path, content)
            count += len(content)
        return count

    @staticmethod
    def _place(path: str, sha256: str) -> str:
        directory, _, name = path.rpartition("/")
        return f"targets/{directory}/{sha256}.{name}"

    def _is_settled(self, targets: Metadata[Targets]) -> bool:
        listed = listed_releases(targets)
        known = {(one.name, one.version) for one in self.ledger.releases()}
        is_known = all(name in known for name in listed)
        return is_known and self.ledger.is_settled(listed) and self._bundles.is_settled(targets.signed.targets)

    def _settle(self, targets: Metadata[Targets]) -> list[ReleaseEntry]:
        """Bring the states in line with what is signed. The caller holds the lock."""
        self._bundles.settle(targets.signed.targets)
        listed = listed_releases(targets)
        known = {(one.name, one.version) for one in self.ledger.releases()}
        unknown = [release for release in listed if release not in known]
        adopted = [name for name in unknown if self._adopt(*name, listed[name])]
        return [*(self.entry(*name) for name in adopted), *self.ledger.settle(listed)]

    def _adopt(self, name: str, version: str, files: tuple[StoredFile, ...]) -> bool:
        """Take a signed release into the ledger that it does not know, as after the database was put back."""
        manifest_file = next((file for file in files if file.path.endswith(f"/{MANIFEST_FILE}")), None)
        if manifest_file is None:
            log.error("release_without_manifest", model=name, version=version)
            return False
        content = self.storage.read(manifest_file.place)
        if digest_of(content) != manifest_file.sha256:
            raise DistrustedError(f"{manifest_file.place} is not the file that was signed: restore the store")
        try:
            manifest = read_manifest(content)
        except MalformedManifestError as error:
            raise DistrustedError(f"{manifest_file.place}: {error}") from error
        self.ledger.adopt(
            ReleaseEntry(
                name=name,
                version=version,
                token=int(manifest_file.custom["token"]),
                digest=manifest_file.sha256,
                state="candidate",  # whether a person had approved it, nobody knows any more
                published_ns=None,
                yanked_ns=None,
                yanked_why="",
                targets=tuple(artefact.target for artefact in manifest.artefacts),
                files=files,
                manifest=manifest,
                hardware=tuple(manifest_file.custom.get("hardware", ())),
                manifest_bytes=content,
            )
        )
        log.warning("release_adopted", model=name, version=version, meaning="the database did not know it")
        return True


def checked_path(path: str) -> str:
    """Return a path that a device may ask for.

    Raises:
        NotFoundError: it is none.
    """
    if _PATH.fullmatch(path) is None:
        raise NotFoundError(f"{path[:200]!r}: not in the repository")
    return path
