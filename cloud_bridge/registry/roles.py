"""The signed documents of the repository (TUF 1.0): made, compared, verified. Pure: keys and the time come in."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from cloud_bridge.registry.errors import DistrustedError

RoleName = Literal["root", "timestamp", "snapshot", "targets"]
ROLES: Final[tuple[RoleName, ...]] = ("root", "timestamp", "snapshot", "targets")
ONLINE: Final[tuple[RoleName, ...]] = ("timestamp", "snapshot")
"""Roles whose keys must be where the bridge runs."""

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)
Document = Metadata[Any]
"""A signed document of any role."""
_SERIALIZER: Final = JSONSerializer(compact=False)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how many days each role's document counts."""

    root: float
    timestamp: float
    snapshot: float
    targets: float


@dataclass(frozen=True, slots=True)
class Signed:
    """A consistent set, verified."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]


def expiry(now: datetime, days: float) -> datetime:
    """Return when something ends; TUF has whole seconds (§4.2)."""
    return (now + timedelta(days=days)).astimezone(UTC).replace(microsecond=0)


def is_due(expires: datetime, now: datetime, days: float) -> bool:
    """Tell whether less than half of its life is left."""
    return expires - now < timedelta(days=days / 2)


def new_root(
    keys: Mapping[RoleName, Iterable[Key]], thresholds: Mapping[RoleName, int], expires: datetime
) -> Metadata[Root]:
    """Return the first root, not signed yet."""
    root = Root(version=1, expires=expires, consistent_snapshot=True)
    for role in ROLES:
        for key in keys[role]:
            root.add_key(key, role)
        root.roles[role].threshold = thresholds.get(role, 1)
    return Metadata(root)


def next_root(current: Metadata[Root], expires: datetime) -> Metadata[Root]:
    """Return an unsigned copy with the next version, to be changed."""
    copy = Metadata[Root].from_bytes(current.to_bytes())
    copy.signatures.clear()
    copy.signed.version += 1
    copy.signed.expires = expires
    return copy


def next_targets(current: Metadata[Targets] | None, version: int, expires: datetime) -> Metadata[Targets]:
    """Return an unsigned copy under a version, to be changed; without `current`, an empty one."""
    copy = Metadata(Targets()) if current is None else Metadata[Targets].from_bytes(current.to_bytes())
    copy.signatures.clear()
    copy.signed.version = version
    copy.signed.expires = expires
    return copy


def meta_of(content: bytes, version: int) -> MetaFile:
    """Return what the document above says of one: version, length and digest."""
    return MetaFile(version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})


def snapshot_of(targets: MetaFile, version: int, expires: datetime) -> Metadata[Snapshot]:
    """Return the snapshot that names a list of targets."""
    return Metadata(Snapshot(version=version, expires=expires, meta={"targets.json": targets}))


def timestamp_of(snapshot: MetaFile, version: int, expires: datetime) -> Metadata[Timestamp]:
    """Return the timestamp that names a snapshot."""
    return Metadata(Timestamp(version=version, expires=expires, snapshot_meta=snapshot))


def sign(document: Document, role: RoleName, root: Root, signers: Mapping[str, CryptoSigner]) -> int:
    """Add the signatures of all keys of a role that are here; return how many are still missing."""
    for keyid in root.roles[role].keyids:
        if keyid in signers and keyid not in document.signatures:
            document.sign(signers[keyid], append=True)
    return missing(document, role, root)


def missing(document: Document, role: RoleName, root: Root) -> int:
    """Return how many good signatures a document still needs."""
    found = root.get_verification_result(role, document.signed_bytes, document.signatures)
    return max(0, found.threshold - len(found.signed))


def to_bytes(document: Document) -> bytes:
    """Return what is written; with line breaks, because people look at it."""
    return document.to_bytes(_SERIALIZER)


def decoded(name: str, content: bytes, kind: type[S]) -> Metadata[S]:
    """Decode a document; nothing of it is verified.

    Args:
        name: where it lies, in full.
        content: of the file.
        kind: the role that it must be of.

    Raises:
        DistrustedError: it is none of this kind.
    """
    try:
        document = Metadata[S].from_bytes(content)
    except (DeserializationError, RecursionError) as error:
        words = f"{error} ({len(content)} bytes)"
        raise DistrustedError(f"{name} is damaged: {words}; restore this file from a backup") from error
    if not isinstance(document.signed, kind):
        raise DistrustedError(f"{name} is of another role, {document.signed.type}; restore this file from a backup")
    return document


def verify(name: str, document: Document, role: RoleName, root: Root) -> None:
    """Check the signatures of a document; it may have expired, for it is to be renewed.

    Raises:
        DistrustedError: too few of them are good.
    """
    try:
        root.verify_delegate(role, document.signed_bytes, document.signatures)
    except RepositoryError as error:
        raise DistrustedError(
            f"{name} is not signed by the keys of this registry: {error}; somebody else wrote it, "
            "restore the store, or `cloud-bridge registry refresh` if only its key was changed"
        ) from error


def verify_named(name: str, content: bytes, meta: MetaFile) -> None:
    """Compare a document with what the one above says of it (TUF §5.5.2, §5.6.2).

    Raises:
        DistrustedError: it is another one.
    """
    try:
        meta.verify_length_and_hashes(content)
    except RepositoryError as error:
        raise DistrustedError(
            f"{name} is not the one that was signed: {error}; restore this file from a backup, no older than the rest"
        ) from error


def follow(root: Metadata[Root], newer: Metadata[Root]) -> None:
    """Check that a root may follow another (TUF §5.3).

    Raises:
        DistrustedError: it is not the next one, or too few keys of the old or the new root signed it.
    """
    if newer.signed.version != root.signed.version + 1:
        raise DistrustedError(f"root version {newer.signed.version} cannot follow {root.signed.version}")
    for trusted in (root.signed, newer.signed):
        verify(f"{newer.signed.version}.root.json", newer, "root", trusted)
