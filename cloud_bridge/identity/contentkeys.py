"""Content keys of model releases: one ciphertext for the fleet, and the key wrapped for each attested device.

Keys are kept encrypted (XChaCha20-Poly1305, the release and its digest as associated data) under a key in a file of
the bridge, so that a copy of the database alone opens no model. Making the ciphertext is the business of who publishes.
"""

import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from nacl.bindings import crypto_scalarmult
from nacl.exceptions import CryptoError
from nacl.public import PublicKey, SealedBox
from nacl.secret import Aead

from cloud_bridge.identity.database import Clock, Database, Transaction
from cloud_bridge.identity.errors import IdentityError, RefusedError
from cloud_bridge.identity.files import create_file, read_private
from gateway.wire.identity import CONTENT_KEY_BYTES, Grant
from gateway.wire.times import rfc3339

log = structlog.get_logger()

_RELEASE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+@:/-]{0,127}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_RECIPIENT_BYTES: Final = 32
_ANY_SCALAR: Final = bytes([64] * 32)
_DAY_NS: Final = 86_400 * 1_000_000_000
MAX_BOXES: Final = 50_000
"""Some 20 MB. Ciphertext: each opens on one device alone."""

_COLUMNS: Final = "release, digest, sealed, gateways, created_ns, revoked_ns"
_ALL: Final = f"SELECT {_COLUMNS} FROM identity_keys ORDER BY release"  # noqa: S608  # constants


@dataclass(frozen=True, slots=True)
class ContentKey:
    """The key of a release: 32 bytes. `gateways`: who may have it, empty for all."""

    release: str
    digest: str
    gateways: tuple[str, ...]
    created_ns: int
    revoked_ns: int | None
    key: bytes = field(repr=False)

    def is_for(self, gateway: str) -> bool:
        """Tell whether a device gets this key."""
        return self.revoked_ns is None and (not self.gateways or gateway in self.gateways)


class ContentKeys:
    """Makes keys, keeps them, wraps them. Safe to use from any thread."""

    def __init__(
        self, database: Database, key_file: Path, *, lease_seconds: float, clock: Clock, max_boxes: int = MAX_BOXES
    ) -> None:
        """Load the key over the keys; it is made at the first start. max_boxes: how many sealed boxes are remembered.

        Raises:
            IdentityError: the file cannot be used.
        """
        create_file(key_file, secrets.token_bytes(Aead.KEY_SIZE))
        master = read_private(key_file)
        if len(master) != Aead.KEY_SIZE:
            raise IdentityError(f"{key_file} must hold {Aead.KEY_SIZE} bytes, it holds {len(master)}; restore it")
        self._box = Aead(master)
        self._database = database
        self._lease_ns = int(lease_seconds * 1e9)
        self._clock = clock
        self._max_boxes = max_boxes
        self._lock = threading.Lock()
        self._boxes: OrderedDict[tuple[bytes, str, int], bytes] = OrderedDict()
        self._unusable: frozenset[str] = frozenset()

    def create(self, release: str, digest: str, gateways: Sequence[str] = ()) -> ContentKey:
        """Make the key of a release.

        digest: SHA-256 of the model that it encrypts, in hexadecimal digits; devices learn it with the key.
        gateways: who may have it; empty: every device.

        Raises:
            IdentityError: the release has a key already, or a name cannot be used.
        """
        if _RELEASE.fullmatch(release) is None or _DIGEST.fullmatch(digest) is None:
            raise IdentityError("a release is up to 128 letters, digits and _.+@:/-, a digest 64 hexadecimal digits")
        key = ContentKey(release, digest, tuple(gateways), self._clock(), None, secrets.token_bytes(CONTENT_KEY_BYTES))
        sealed = self._box.encrypt(key.key, _associated(release, digest))
        with self._database.transaction() as tx:
            added = tx.change(
                f"INSERT INTO identity_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, NULL)"  # noqa: S608  # constants
                " ON CONFLICT (release) DO NOTHING",
                (release, digest, bytes(sealed), json.dumps(list(gateways)), key.created_ns),
            )
        if not added:
            raise IdentityError(f"{release} has a content key already; a new encryption is a new release")
        return key

    def find(self, release: str) -> ContentKey:
        """Return the key of a release, to encrypt with.

        Raises:
            IdentityError: there is none, or it cannot be decrypted.
        """
        for key in self.all():
            if key.release == release:
                return key
        raise IdentityError(f"{release} has no content key; `cloud-bridge identity grants create` makes one")

    def all(self) -> list[ContentKey]:
        """Return all keys by release.

        Raises:
            IdentityError: one cannot be decrypted: the file with the key over the keys is another one.
        """
        with self._database.transaction(durable=False) as tx:  # it only reads
            return self.read(tx)

    def revoke(self, release: str) -> None:
        """Stop giving a key out. Devices that have it keep it until their lease ends.

        Raises:
            IdentityError: there is none.
        """
        with self._database.transaction() as tx:
            sql = "UPDATE identity_keys SET revoked_ns = coalesce(revoked_ns, ?) WHERE release = ?"
            if not tx.change(sql, (self._clock(), release)):
                raise IdentityError(f"{release} has no content key")

    def wrap_for(self, gateway: str, recipient: bytes, keys: Sequence[ContentKey]) -> list[Grant]:
        """Wrap every one of some keys that a device may have; the caller has attested the device.

        recipient: of the device, which `sealed_box` takes.
        """
        until_ns = self._clock() + self._lease_ns
        return [
            Grant(
                release=key.release,
                digest=key.digest,
                wrapped_key=wrapped,
                lease_until=rfc3339(until_ns),
                lease_until_ns=until_ns,
            )
            for key, wrapped in self._wrapped(recipient, [key for key in keys if key.is_for(gateway)])
        ]

    def _wrapped(self, recipient: bytes, keys: Sequence[ContentKey]) -> Iterator[tuple[ContentKey, bytes]]:
        """Yield each key with its box. A device comes twice an hour for the same keys: boxes are made once."""
        box = sealed_box(recipient)
        for key in keys:
            place = (recipient, key.release, key.created_ns)
            with self._lock:
                wrapped = self._boxes.get(place)
                if wrapped is not None:
                    self._boxes.move_to_end(place)
            if wrapped is None:
                wrapped = box.encrypt(key.key)
                with self._lock:
                    self._boxes[place] = wrapped
                    while len(self._boxes) > self._max_boxes:
                        self._boxes.popitem(last=False)
            yield key, wrapped

    def read(self, tx: Transaction) -> list[ContentKey]:
        """Return all keys by release, within a transaction; raises as `all`."""
        return [self._opened(row) for row in tx.rows(_ALL)]

    def usable(self, tx: Transaction) -> list[ContentKey]:
        """Return the keys that can be decrypted, by release: a damaged one keeps no device from its certificate."""
        keys: list[ContentKey] = []
        unusable: set[str] = set()
        for row in tx.rows(_ALL):
            try:
                keys.append(self._opened(row))
            except IdentityError as error:
                unusable.add(str(row[0]))
                if str(row[0]) not in self._unusable:
                    log.error("content_key_unusable", release=row[0], error=str(error), consequence="given to nobody")
        if self._unusable - unusable:
            log.info("content_keys_usable_again", releases=len(self._unusable - unusable))
        self._unusable = frozenset(unusable)
        return keys

    def _opened(self, row: tuple[Any, ...]) -> ContentKey:
        release, digest, sealed, gateways, created_ns, revoked_ns = row
        try:
            key = self._box.decrypt(bytes(sealed), _associated(release, digest))
        except (CryptoError, ValueError) as error:
            raise IdentityError(
                f"the content key of {release} cannot be decrypted; restore the key file it was made with"
            ) from error
        return ContentKey(release, digest, tuple(json.loads(gateways)), created_ns, revoked_ns, key)


def sealed_box(recipient: bytes) -> "SealedBox[PublicKey]":
    """Check a recipient and return the box for it.

    Raises:
        RefusedError: `recipient-unfit`.
    """
    try:
        if len(recipient) != _RECIPIENT_BYTES:
            raise ValueError(f"{len(recipient)} bytes")
        crypto_scalarmult(_ANY_SCALAR, recipient)  # refuses points of low order, with which anybody could open the box
        box = SealedBox(PublicKey(recipient))
    except (CryptoError, ValueError, RuntimeError) as error:
        raise RefusedError("recipient-unfit", f"the recipient is not an X25519 public key: {error}") from error
    return box


def _associated(release: str, digest: str) -> bytes:
    return f"content key\0{release}\0{digest}".encode()
