"""Publishes bundles in the repository of the models, and takes them back. The same keys, the same lock, one list."""

from dataclasses import dataclass
from pathlib import Path

import structlog
from tuf.api.metadata import TargetFile

from cloud_bridge.identity.database import Clock, Database
from cloud_bridge.osbundles.bundle import Bundle, read_bundle, verify
from cloud_bridge.osbundles.ledger import BundleEntry, BundleLedger
from cloud_bridge.registry.errors import RegistryError, SignatureMissingError
from cloud_bridge.registry.ledger import Ledger
from cloud_bridge.registry.repository import Repository

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Published:
    """What came of it. `is_new`: False when the same bundle was published before."""

    entry: BundleEntry
    is_new: bool
    waiting: str = ""  # for which signatures the metadata waits; empty: devices can install it now


class BundleShelf:
    """The bundles of a repository. Blocking."""

    def __init__(self, repository: Repository, numbers: Ledger, database: Database, clock: Clock) -> None:
        """Take the parts. numbers: of the registry, where tokens and events are."""
        self.ledger = BundleLedger(database, clock)
        self._repository = repository
        self._numbers = numbers

    def publish(
        self, file: Path, *, expected: dict[str, str] | None = None, keyring: Path | None = None, who: str = "operator"
    ) -> Published:
        """Publish a bundle; one that is published already, the same, is returned as it is.

        Args:
            file: the bundle. What devices are told about it is what its own signed manifest says.
            expected: `compatible`, `version`, `floor` as the publisher believes them to be.
            keyring: who must have signed it; None: each device finds out by itself.
            who: for the events.

        Raises:
            RegistryError: it is no bundle, not what was expected, or this version is there with other contents.
            StorageError, BusyError, StoreError: not now; the same call may succeed later.
        """
        bundle = read_bundle(file)
        _check(bundle, expected or {})
        if keyring is not None:
            verify(bundle, keyring)
        if any(entry.name == bundle.compatible for entry in self._numbers.releases()):
            raise RegistryError(f"a model is called {bundle.compatible}; give the image another `compatible`")
        self._repository.load()  # so that what cannot be signed shows before the work
        known = self.ledger.find(bundle.compatible, bundle.version)
        token = known.token if known is not None else self._numbers.next_number("token")
        entry = self.ledger.reserve(bundle, token)
        if entry.published_ns is not None:
            return Published(entry, is_new=False)
        self._repository.storage.write_from(entry.place, file)
        waiting = self._list(entry)
        self._numbers.note("os-published", f"{entry.label}, token {entry.token}", who)
        entry = self.ledger.entry(entry.compatible, entry.version)
        log.info("os_bundle_published", bundle=entry.label, token=entry.token, waiting=waiting)
        return Published(entry, is_new=True, waiting=waiting)

    def yank(self, compatible: str, version: str, why: str, *, who: str = "operator") -> BundleEntry:
        """Take a bundle back: no device can install it any more. Where it runs, it goes on.

        Raises:
            NotFoundError: there is none.
            SignatureMissingError: the key of the targets is elsewhere; what to sign is staged.
        """
        entry = self.ledger.entry(compatible, version)
        if entry.yanked_ns is not None:
            return entry
        if entry.published_ns is None:
            raise RegistryError(f"{entry.label} is not published, so there is nothing to take back")
        self.ledger.explain_yank(entry, why)
        self._numbers.note("os-yanked", f"{entry.label}: {why}", who)
        with self._repository.lock.held() as prolong:
            current = self._repository.load()
            draft = self._repository.draft(current)
            draft.signed.targets.pop(entry.path, None)
            self._repository.commit(current, prolong, targets=draft)
            self.ledger.settle(draft.signed.targets)
        log.info("os_bundle_yanked", bundle=entry.label, why=why)
        return self.ledger.entry(compatible, version)

    def settle(self) -> None:
        """Bring the states in line with what is signed, as after a signature that was made elsewhere.

        Raises:
            BusyError: the states are to change, and somebody else holds the repository for too long.
        """
        if self.ledger.is_settled(self._repository.load().targets.signed.targets):
            return
        # With the lock, and what counts then: a publication may be between its signature and its state.
        with self._repository.lock.held():
            self.ledger.settle(self._repository.load().targets.signed.targets)

    def _list(self, entry: BundleEntry) -> str:
        """Make the bundle count; return which signatures it waits for."""
        with self._repository.lock.held() as prolong:
            current = self._repository.load()
            draft = self._repository.draft(current)
            draft.signed.targets[entry.path] = TargetFile(
                entry.size_bytes,
                {"sha256": entry.sha256},
                entry.path,
                unrecognized_fields={"custom": {**entry.custom, "token": entry.token}},
            )
            try:
                self._repository.commit(current, prolong, targets=draft)
            except SignatureMissingError as waiting:
                return str(waiting)
            self.ledger.settle(draft.signed.targets)
        return ""


def _check(bundle: Bundle, expected: dict[str, str]) -> None:
    for what, value in expected.items():
        said = str(getattr(bundle, what))
        if said != value:
            raise RegistryError(
                f"{bundle.file}: its {what} is {said!r}, not {value!r}; what counts is what is signed inside"
            )
