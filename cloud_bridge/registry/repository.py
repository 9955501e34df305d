"""The signed metadata in the store: read, verified, renewed, replaced.

Files of the metadata have their version in their name and are never written twice. What counts is what timestamp.json
names, and that is replaced last: who is killed before leaves the old repository, who is killed after the new one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from cloud_bridge.config import Registry as Settings
from cloud_bridge.identity.database import Clock
from cloud_bridge.identity.files import PUBLIC, write_file
from cloud_bridge.identity.issuer import utc
from cloud_bridge.registry import roles
from cloud_bridge.registry.directories import PRIVATE, make_directory
from cloud_bridge.registry.errors import DistrustedError, NotFoundError, NotInitialisedError, SignatureMissingError
from cloud_bridge.registry.keys import KeyDirectory
from cloud_bridge.registry.ledger import Ledger
from cloud_bridge.registry.lock import Lock
from cloud_bridge.registry.roles import Document, Lifetimes, RoleName, Signed
from cloud_bridge.registry.storage import Storage

TIMESTAMP_FILE: Final = "metadata/timestamp.json"
_ROOTS_AT_ONCE: Final = 256  # as clients follow (python-tuf's limit)


@dataclass(frozen=True, slots=True)
class Staged:
    """Metadata that waits for keys that are not on this machine."""

    root: Metadata[Root] | None
    targets: Metadata[Targets] | None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self.root is None and self.targets is None


def named(role: RoleName, version: int) -> str:
    """Return where a version of a document lies (TUF §3.1)."""
    return f"metadata/{version}.{role}.json"


class Repository:
    """The metadata. Whoever changes it holds `lock.held()` around what it decides and what it commits."""

    def __init__(
        self, storage: Storage, keys: KeyDirectory, settings: Settings, ledger: Ledger, *, clock: Clock, lock: Lock
    ) -> None:
        """Prepare; nothing is read yet."""
        self.storage = storage
        self.keys = keys
        self.ledger = ledger
        self.lock = lock
        self._clock = clock
        self._life = Lifetimes(
            settings.root_days, settings.timestamp_days, settings.snapshot_days, settings.targets_days
        )

    # ---- reading ---------------------------------------------------------------------------------------------

    def root(self) -> Metadata[Root]:
        """Return the newest root, from the one in the directory of the keys on.

        Raises:
            NotInitialisedError: there is none.
            DistrustedError: one in the store does not follow.
        """
        try:
            content = self.keys.root_file.read_bytes()
        except FileNotFoundError as error:
            raise NotInitialisedError(
                f"{self.keys.root_file} is not there: `cloud-bridge registry init` makes a repository, once"
            ) from error
        root = roles.decoded(str(self.keys.root_file), content, Root)
        for _ in range(_ROOTS_AT_ONCE):
            try:
                newer = self.storage.read(named("root", root.signed.version + 1))
            except NotFoundError:
                break
            candidate = roles.decoded(self._in_full(named("root", root.signed.version + 1)), newer, Root)
            roles.follow(root, candidate)
            root = candidate
        return root

    def load(self, *, as_it_is: str = "") -> Signed:
        """Return the whole set, verified; it may have expired.

        as_it_is: why an older set than the one signed last is taken, too; empty: it is not.

        Raises:
            NotInitialisedError: there is no repository.
            DistrustedError: something is not as it was signed, or older than what was signed last.
            StorageError: the store cannot be read now.
        """
        newest = self.ledger.highest("signed:timestamp")  # before the file: another publisher may be at work
        root = self.root()
        trusted = root.signed
        place = self._in_full(TIMESTAMP_FILE)
        timestamp = roles.decoded(place, self._read(TIMESTAMP_FILE), Timestamp)
        self._verify(place, timestamp, "timestamp", trusted)
        meta = timestamp.signed.snapshot_meta
        name = named("snapshot", meta.version)
        place, content = self._in_full(name), self._read(name)
        roles.verify_named(place, content, meta)
        snapshot = roles.decoded(place, content, Snapshot)
        self._verify(place, snapshot, "snapshot", trusted)
        meta = snapshot.signed.meta["targets.json"]
        name = named("targets", meta.version)
        place, content = self._in_full(name), self._read(name)
        roles.verify_named(place, content, meta)
        targets = roles.decoded(place, content, Targets)
        self._verify(place, targets, "targets", trusted)
        if not as_it_is:
            self._refuse_older(timestamp.signed.version, newest)
        return Signed(root, timestamp, snapshot, targets)

    def _read(self, path: str) -> bytes:
        try:
            return self.storage.read(path)
        except NotFoundError as error:
            raise DistrustedError(
                f"{path} is missing in {self.storage.url}: restore the store from a backup"
            ) from error

    def _in_full(self, path: str) -> str:
        """Return a path as people find the file."""
        return f"{self.storage.url.rstrip('/')}/{path}"

    def _verify(self, name: str, document: Document, role: RoleName, root: Root) -> None:
        """As `roles.verify`, but a document that is to be signed anew after a change of keys may have been ours."""
        try:
            roles.verify(name, document, role, root)
        except DistrustedError:
            previous = self._previous_root(root.version)
            if previous is None:
                raise
            roles.verify(name, document, role, previous)

    def _previous_root(self, version: int) -> Root | None:
        """Return the root before, when it is known to be good: a change of keys may have been cut short after it."""
        if version <= 1 or self.ledger.highest("rotating") != version:
            return None
        name = named("root", version - 1)
        return roles.decoded(self._in_full(name), self.storage.read(name), Root).signed

    def _refuse_older(self, version: int, newest: int) -> None:
        if version < newest:
            raise DistrustedError(
                f"{self.storage.url} has timestamp version {version}, and this registry has signed {newest}: an older "
                "copy was put back. Restore the newer one; or, if that is what is wanted, "
                "`cloud-bridge registry refresh --take-older`"
            )

    # ---- writing ---------------------------------------------------------------------------------------------

    def initialise(self, root: Metadata[Root], signers: Mapping[str, CryptoSigner]) -> None:
        """Write the first, empty set; the root is signed. Done again after it was cut short, it converges.

        Raises:
            SignatureMissingError: the keys for an empty list of targets are not given.
        """
        now = utc(self._clock())
        self.storage.write(named("root", 1), roles.to_bytes(root))
        targets = roles.next_targets(None, 1, roles.expiry(now, self._life.targets))
        self._signed(targets, "targets", root.signed, signers)
        self.ledger.raise_to("reserved:targets", 1)
        self._commit(root, targets, None, signers, lambda: None)
        write_file(self.keys.root_file, roles.to_bytes(root), PUBLIC)

    def draft(self, current: Signed) -> Metadata[Targets]:
        """Return an unsigned list of targets to be changed: of what waits for a signature, or else of what counts."""
        staged = self.staged(current).targets
        version = self.ledger.next_number("reserved:targets", current.targets.signed.version)
        now = utc(self._clock())
        return roles.next_targets(staged or current.targets, version, roles.expiry(now, self._life.targets))

    def commit(
        self,
        current: Signed,
        prolong: Callable[[], None],
        *,
        targets: Metadata[Targets] | None = None,
        root: Metadata[Root] | None = None,
    ) -> Signed:
        """Sign with the keys that are here, and make it count.

        targets, root: what is new about them; snapshot and timestamp are made anew in any case.

        Raises:
            SignatureMissingError: keys that are elsewhere must sign; what to sign is staged.
            BusyError: the lock was lost; what counts is what counted before.
            StorageError: the store cannot be written now; likewise.
        """
        signers = self.keys.signers()
        new_root = root or current.root
        staged = self.staged(current)
        waiting = [] if targets is None else self._sign(targets, "targets", new_root.signed, signers)
        if root is not None:
            waiting += self._sign_root(root, current.root, signers)
        if waiting:
            self._stage(Staged(root or staged.root, targets or staged.targets))
            raise SignatureMissingError("; ".join(waiting) + ". See `cloud-bridge registry sign --help`")
        made = self._commit(new_root, targets or current.targets, current, signers, prolong)
        self._unstage(root=root is not None, targets=targets is not None)
        return made

    def _commit(
        self,
        root: Metadata[Root],
        targets: Metadata[Targets],
        current: Signed | None,
        signers: Mapping[str, CryptoSigner],
        prolong: Callable[[], None],
    ) -> Signed:
        now = utc(self._clock())
        if current is None or targets.signed.version != current.targets.signed.version:
            content = roles.to_bytes(targets)
            self.storage.write(named("targets", targets.signed.version), content)
            meta = roles.meta_of(content, targets.signed.version)
        else:
            meta = current.snapshot.signed.meta["targets.json"]
        version = self.ledger.next_number(
            "reserved:snapshot", 0 if current is None else current.snapshot.signed.version
        )
        snapshot = roles.snapshot_of(meta, version, roles.expiry(now, self._life.snapshot))
        self._signed(snapshot, "snapshot", root.signed, signers)
        content = roles.to_bytes(snapshot)
        self.storage.write(named("snapshot", version), content)
        number = self.ledger.next_number(
            "reserved:timestamp", 0 if current is None else current.timestamp.signed.version
        )
        timestamp = roles.timestamp_of(roles.meta_of(content, version), number, roles.expiry(now, self._life.timestamp))
        self._signed(timestamp, "timestamp", root.signed, signers)
        prolong()
        if current is not None and root.signed.version != current.root.signed.version:
            # Between this file and the timestamp, clients may find a timestamp that the new root does not know.
            self.ledger.raise_to("rotating", root.signed.version)
            self.storage.write(named("root", root.signed.version), roles.to_bytes(root))
        self.storage.write(TIMESTAMP_FILE, roles.to_bytes(timestamp))
        self.ledger.raise_to("signed:timestamp", number)
        if current is not None and self.keys.root_file.exists():
            write_file(self.keys.root_file, roles.to_bytes(root), PUBLIC)
        return Signed(root, timestamp, snapshot, targets)

    def _signed(self, document: Document, role: RoleName, root: Root, signers: Mapping[str, CryptoSigner]) -> None:
        if roles.sign(document, role, root, signers):
            raise SignatureMissingError(
                f"the key of {role} is not in {self.keys.online}: the bridge needs it there; bring it back, or change "
                f"it with `cloud-bridge registry rotate-key {role}`"
            )

    def _sign(
        self, document: Metadata[Targets], role: RoleName, root: Root, signers: Mapping[str, CryptoSigner]
    ) -> list[str]:
        left = roles.sign(document, role, root, signers)
        return [f"{role} version {document.signed.version} needs {left} more signature(s)"] if left else []

    def _sign_root(
        self, root: Metadata[Root], current: Metadata[Root], signers: Mapping[str, CryptoSigner]
    ) -> list[str]:
        left = max(roles.sign(root, "root", trusted.signed, signers) for trusted in (current, root))
        return [f"root version {root.signed.version} needs {left} more signature(s)"] if left else []

    def is_due(self, current: Signed) -> bool:
        """Tell whether half of the life of the timestamp or the snapshot is over, or a change of keys was cut short."""
        now = utc(self._clock())
        trusted = current.root.signed
        return (
            roles.is_due(current.timestamp.signed.expires, now, self._life.timestamp)
            or roles.is_due(current.snapshot.signed.expires, now, self._life.snapshot)
            or roles.missing(current.timestamp, "timestamp", trusted) > 0
            or roles.missing(current.snapshot, "snapshot", trusted) > 0
            or self.targets_due(current)
        )

    def targets_due(self, current: Signed) -> bool:
        """Tell whether the list of targets is to be signed anew, and can be: half of its life over, or another key."""
        trusted = current.root.signed
        if roles.missing(current.targets, "targets", trusted):
            return True  # a change of its key was cut short
        here = sum(1 for keyid in trusted.roles["targets"].keyids if keyid in self.keys.signers())
        due = roles.is_due(current.targets.signed.expires, utc(self._clock()), self._life.targets)
        return due and here >= trusted.roles["targets"].threshold

    # ---- what waits for a signature ----------------------------------------------------------------------------

    def staged(self, current: Signed) -> Staged:
        """Return what waits for a signature.

        What counts already, or is older than that, waits for nothing any more: a publisher was killed before it could
        tidy up, or another host was faster. A list that is begun from it would lack what was published since.
        """
        root, targets = self._staged("root", Root), self._staged("targets", Targets)
        if root is not None and root.signed.version <= current.root.signed.version:
            root = None
        if targets is not None and targets.signed.version <= current.targets.signed.version:
            targets = None
        return Staged(root, targets)

    def stage(self, staged: Staged) -> None:
        """Keep what waits, with more signatures than before."""
        self._stage(staged)

    def _staged(self, role: str, kind: type[roles.S]) -> Metadata[roles.S] | None:
        file = self.keys.staged / f"{role}.json"
        try:
            return roles.decoded(str(file), file.read_bytes(), kind)
        except FileNotFoundError:
            return None
        except DistrustedError as error:
            raise DistrustedError(
                f"{error}, or remove it: what waited for a signature is then to be begun anew"
            ) from error

    def _stage(self, staged: Staged) -> None:
        make_directory(self.keys.staged, PRIVATE)
        if staged.root is not None:
            write_file(self.keys.staged / "root.json", roles.to_bytes(staged.root), PUBLIC)
        if staged.targets is not None:
            write_file(self.keys.staged / "targets.json", roles.to_bytes(staged.targets), PUBLIC)

    def _unstage(self, *, root: bool, targets: bool) -> None:
        if root:
            (self.keys.staged / "root.json").unlink(missing_ok=True)
        if targets:
            (self.keys.staged / "targets.json").unlink(missing_ok=True)
