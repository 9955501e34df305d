"""The keys on disk: a vault key that only the key store opens, and content keys wrapped under it.

    <state>/vault/current                     the number of the generation that counts
    <state>/vault/generations/<n>/vault.key   the vault key, sealed by the key store
                                  recipient.key   the X25519 secret that grants are addressed to, sealed likewise
                                  recipient.pub   its public half
                                  floor.key   what the floor of updates is authenticated with, wrapped likewise
                                  keys/<release>.json   a content key, wrapped under the vault key

A change of the vault key makes a whole new generation and then moves `current` in one step: at every moment one of
the two is complete, so a power cut costs nothing. A content key is wrapped with XChaCha20-Poly1305, and
release, name, version and lease are authenticated with it.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import nacl.exceptions
from nacl.public import PrivateKey, SealedBox
from nacl.secret import Aead

from gateway.vault.aead import KEY_BYTES
from gateway.vault.container import key_id
from gateway.vault.errors import KeyMissingError, KeyStoreError, VaultError, WrongKeyError
from gateway.vault.files import put_in_place, remove_directory, sync_directory, write_durably
from gateway.vault.keystore import KeyStore
from gateway.vault.lease import is_worth_writing
from gateway.wire.manifest import Sha256

_CURRENT: Final = "current"
_GENERATIONS: Final = "generations"
_VAULT_KEY: Final = "vault.key"
_RECIPIENT_KEY: Final = "recipient.key"
_RECIPIENT_PUBLIC: Final = "recipient.pub"
_FLOOR_KEY: Final = "floor.key"
_FLOOR_PURPOSE: Final = b"sluice floor key v1"
_KEYS: Final = "keys"
_ANEW: Final = "`gateway vault init --anew` begins again; content keys then come back with the next grants"


class WrappedKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A content key as it lies on disk."""

    release: Sha256  # of the release's manifest.json
    label: str  # `name version`, for people; may be empty
    key: Sha256  # `key_id` of the content key
    lease_until_ns: int | None  # UTC; None: without end
    wrapped: bytes

    @property
    def bound(self) -> bytes:
        """What is authenticated with the key."""
        fields = (self.release, self.label, self.key, self.lease_until_ns)
        return b"sluice wrapped content key v1" + msgspec.json.encode(fields)


@dataclass(frozen=True, slots=True)
class ContentKey:
    """A content key, opened."""

    release: str
    label: str
    lease_until_ns: int | None
    secret: bytes

    @property
    def is_own(self) -> bool:
        """Whether it was drawn on this device and never left it: a key that was granted has a lease, always."""
        return self.lease_until_ns is None


@dataclass(frozen=True, slots=True)
class GrantedKey:
    """A content key as the bridge gives it out."""

    release: Sha256  # of the release's manifest.json
    label: str  # `name version`, for people; may be empty
    wrapped: bytes  # a libsodium sealed box to `Keyring.recipient`, 80 bytes
    lease_until_ns: int  # UTC


class Keyring:
    """The generations of one vault. The caller holds the vault's lock: exclusive for everything that changes."""

    def __init__(self, directory: Path, store: KeyStore) -> None:
        self._directory = directory
        self._store = store

    @property
    def generation(self) -> int | None:
        """Which generation counts; None before `create`. Where the file that says so is lost: the newest whole one.

        Raises:
            VaultError: the file that says so cannot be read.
        """
        file = self._directory / _CURRENT
        try:
            number = int(file.read_text(encoding="ascii"))
            if (self._directory / _GENERATIONS / str(number)).is_dir():
                return number
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise VaultError(
                f"{file} is damaged: {error}; write the number of the newest complete directory of "
                f"{self._directory / _GENERATIONS} into it, or: {_ANEW}"
            ) from error
        return max((int(each.name) for each in self._generations() if each.name.isdecimal()), default=None)

    def create(self) -> None:
        """Draw a vault key and a recipient key, and seal both."""
        self._install(secrets.token_bytes(KEY_BYTES), bytes(PrivateKey.generate()), (), secrets.token_bytes(KEY_BYTES))

    def replace(self, *, vault_key: bytes | None = None) -> None:
        """Make a new generation with all content keys.

        Args:
            vault_key: default the present one; new secrets are drawn only when another one is given.
        """
        present, recipient = self._unsealed(_VAULT_KEY), self._unsealed(_RECIPIENT_KEY)
        content = tuple(self._opened(wrapped, present) for wrapped in self.wrapped_keys())
        floor = self._floor_key(present) or secrets.token_bytes(KEY_BYTES)
        if vault_key is None:
            self._install(present, recipient, content, floor)
        else:
            self._install(vault_key, bytes(PrivateKey.generate()), content, floor)

    def check(self) -> None:
        """Unseal both secrets and open every content key, and throw them away."""
        vault_key = self._unsealed(_VAULT_KEY)
        public = bytes(PrivateKey(self._unsealed(_RECIPIENT_KEY)).public_key)
        if public != self.recipient():
            raise VaultError(f"the recipient's public key does not belong to its secret: {_ANEW}")
        for wrapped in self.wrapped_keys():
            self._opened(wrapped, vault_key)

    def missing(self) -> list[str]:
        """Say which of the files that `check` unseals cannot be read or are empty; what is in them is not looked at."""
        problems = []
        for name in (_VAULT_KEY, _RECIPIENT_KEY, _RECIPIENT_PUBLIC):
            file = self._here() / name
            try:
                if not self._read(file):
                    problems.append(f"{file} is empty: {_ANEW}")
            except VaultError as error:
                problems.append(str(error))
        return problems

    def recipient(self) -> bytes:
        """Return the X25519 public key that grants must be addressed to; needs no unsealing."""
        return self._read(self._here() / _RECIPIENT_PUBLIC)

    def accept(self, grants: Sequence[GrantedKey], now_ns: int) -> dict[str, VaultError]:
        """Open content keys that are addressed to `recipient`, and keep them; both secrets are unsealed once for all.

        A key that was drawn on this device stays: something here is sealed with it, and nobody else has it. One that is
        there already with nearly the same lease is not written again.

        Returns:
            By release, why a grant was not taken; the others were.

        Raises:
            KeyStoreError: the key store does not give the secrets out.
        """
        if not grants:
            return {}
        box, vault_key = SealedBox(PrivateKey(self._unsealed(_RECIPIENT_KEY))), self._unsealed(_VAULT_KEY)
        refused: dict[str, VaultError] = {}
        for grant in grants:
            try:
                _require_digest(grant.release)
                content = ContentKey(grant.release, grant.label, grant.lease_until_ns, _from_box(box, grant.wrapped))
                present = self._present(grant.release, vault_key)
                if present is None or not _stays(present, content, now_ns):
                    self._write(content, vault_key)
            except VaultError as error:
                refused[grant.release] = error
        return refused

    def put(self, content: ContentKey) -> None:
        """Wrap and keep a content key; replaces the one of the same release."""
        self._write(content, self._unsealed(_VAULT_KEY))

    def find(self, release: str) -> WrappedKey:
        """Return the wrapped content key of a release.

        Raises:
            KeyMissingError: there is none.
        """
        file = self._here() / _KEYS / f"{release}.json"
        if not file.exists():
            raise KeyMissingError(
                f"there is no key for the release {release[:12]}… on this device: it comes with a grant from the "
                "bridge, or with `gateway vault import` of the plain release"
            )
        return _decoded(file, self._read(file))

    def floor_key(self) -> bytes:
        """Return the key that the floor of updates is authenticated with; a vault from before there was one gets it.

        Raises:
            KeyStoreError: the key store does not give the vault key out.
            WrongKeyError: the file was changed.
        """
        vault_key = self._unsealed(_VAULT_KEY)
        key = self._floor_key(vault_key)
        return key if key is not None else self._put_floor_key(vault_key)

    def new_floor_key(self) -> bytes:
        """Draw another one in its place. Raises KeyStoreError."""
        return self._put_floor_key(self._unsealed(_VAULT_KEY))

    def open(self, wrapped: WrappedKey) -> ContentKey:
        """Open a content key.

        Raises:
            KeyStoreError: the key store does not give the vault key out.
            WrongKeyError: the file was changed.
        """
        return self._opened(wrapped, self._unsealed(_VAULT_KEY))

    def open_all(self, several: Sequence[WrappedKey]) -> list[ContentKey | WrongKeyError]:
        """Open content keys with one unsealing; a file that was changed is an error in its place.

        Raises:
            KeyStoreError: the key store does not give the vault key out.
        """
        vault_key = self._unsealed(_VAULT_KEY)
        return [self._opened_or_wrong(wrapped, vault_key) for wrapped in several]

    def wrapped_keys(self) -> Iterator[WrappedKey]:
        """Yield all content keys, by release."""
        for file in sorted((self._here() / _KEYS).glob("*.json")):
            yield _decoded(file, self._read(file))

    def remove_leftovers(self) -> None:
        """Remove generations that do not count, finished or not."""
        kept = str(self.generation)
        for directory in self._generations():
            if directory.name != kept:
                remove_directory(directory)

    def forget(self) -> None:
        """Give everything up: first all generations lose their names, so that none is taken for a whole one again."""
        for directory in self._generations():
            if directory.name.isdecimal():
                nameless = directory.with_name(f"{directory.name}.partial")
                remove_directory(nameless)
                directory.rename(nameless)
                sync_directory(directory.parent)
        (self._directory / _CURRENT).unlink(missing_ok=True)
        sync_directory(self._directory)
        self.remove_leftovers()

    def _generations(self) -> list[Path]:
        return list((self._directory / _GENERATIONS).glob("*"))

    def _install(self, vault_key: bytes, recipient: bytes, content: Sequence[ContentKey], floor: bytes) -> None:
        number = (self.generation or 0) + 1
        generations = self._directory / _GENERATIONS
        partial = generations / f"{number}.partial"
        self.remove_leftovers()
        try:
            (partial / _KEYS).mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise VaultError(f"{partial} cannot be made: {error.strerror or error}") from error
        write_durably(partial / _VAULT_KEY, self._store.seal(vault_key))
        write_durably(partial / _RECIPIENT_KEY, self._store.seal(recipient))
        write_durably(partial / _RECIPIENT_PUBLIC, bytes(PrivateKey(recipient).public_key))
        write_durably(partial / _FLOOR_KEY, bytes(Aead(vault_key).encrypt(floor, _FLOOR_PURPOSE)))
        for each in content:
            wrapped = msgspec.json.encode(_wrapped(each, vault_key))
            write_durably(partial / _KEYS / f"{each.release}.json", wrapped)
        put_in_place(partial, generations / str(number))
        sync_directory(self._directory)  # in which `generations` may be new
        write_durably(self._directory / _CURRENT, b"%d\n" % number)
        self.remove_leftovers()

    def _here(self) -> Path:
        number = self.generation
        if number is None:
            raise KeyStoreError("this device has no vault yet: run `gateway vault init`")
        return self._directory / _GENERATIONS / str(number)

    def _unsealed(self, name: str) -> bytes:
        return self._store.unseal(self._read(self._here() / name))

    def _write(self, content: ContentKey, vault_key: bytes) -> None:
        wrapped = msgspec.json.encode(_wrapped(content, vault_key))
        write_durably(self._here() / _KEYS / f"{content.release}.json", wrapped)

    def _present(self, release: str, vault_key: bytes) -> ContentKey | None:
        """Return the content key that is there, None when there is none, or none that opens.

        Raises:
            VaultError: it cannot be read now: what it is, is not known.
        """
        try:
            return self._opened(self.find(release), vault_key)
        except (KeyMissingError, WrongKeyError):
            return None

    def _put_floor_key(self, vault_key: bytes) -> bytes:
        key = secrets.token_bytes(KEY_BYTES)
        write_durably(self._here() / _FLOOR_KEY, bytes(Aead(vault_key).encrypt(key, _FLOOR_PURPOSE)))
        return key

    def _floor_key(self, vault_key: bytes) -> bytes | None:
        file = self._here() / _FLOOR_KEY
        if not file.exists():
            return None
        try:
            return Aead(vault_key).decrypt(self._read(file), _FLOOR_PURPOSE)
        except (nacl.exceptions.CryptoError, nacl.exceptions.ValueError) as error:
            raise WrongKeyError(
                f"{file} was changed or is damaged; remove it, and the bridge sets the floor of updates anew"
            ) from error

    def _opened_or_wrong(self, wrapped: WrappedKey, vault_key: bytes) -> ContentKey | WrongKeyError:
        try:
            return self._opened(wrapped, vault_key)
        except WrongKeyError as error:
            return error

    def _opened(self, wrapped: WrappedKey, vault_key: bytes) -> ContentKey:
        try:
            secret = Aead(vault_key).decrypt(wrapped.wrapped, wrapped.bound)
        except (nacl.exceptions.CryptoError, nacl.exceptions.ValueError) as error:
            raise WrongKeyError(
                f"the key of the release {wrapped.release[:12]}… on disk was changed or is damaged; a new grant "
                "replaces it"
            ) from error
        return ContentKey(wrapped.release, wrapped.label, wrapped.lease_until_ns, secret)

    @staticmethod
    def _read(file: Path) -> bytes:
        try:
            return file.read_bytes()
        except OSError as error:
            raise VaultError(f"{file} cannot be read: {error.strerror}; {_ANEW}") from error


def _require_digest(text: str) -> None:
    """Make sure that what names a file names one: it comes from the network."""
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise VaultError(f"{text[:80]!r} is no SHA-256 of a manifest")


def _from_box(box: "SealedBox[PrivateKey]", wrapped: bytes) -> bytes:
    try:
        content_key: bytes = box.decrypt(wrapped)
    except (nacl.exceptions.CryptoError, nacl.exceptions.ValueError, nacl.exceptions.TypeError) as error:
        raise WrongKeyError("the grant is not addressed to this device, or damaged: attest again") from error
    if len(content_key) != KEY_BYTES:
        raise WrongKeyError(f"the grant holds {len(content_key)} bytes, a content key has {KEY_BYTES}")
    return content_key


def _stays(present: ContentKey, granted: ContentKey, now_ns: int) -> bool:
    """Tell whether the key that is there need not be written again."""
    if present.lease_until_ns is None:
        return True
    assert granted.lease_until_ns is not None
    same = (present.secret, present.label) == (granted.secret, granted.label)
    return same and not is_worth_writing(present.lease_until_ns, granted.lease_until_ns, now_ns)


def _wrapped(content: ContentKey, vault_key: bytes) -> WrappedKey:
    bare = WrappedKey(
        release=content.release,
        label=content.label,
        key=key_id(content.secret),
        lease_until_ns=content.lease_until_ns,
        wrapped=b"",
    )
    return msgspec.structs.replace(bare, wrapped=bytes(Aead(vault_key).encrypt(content.secret, bare.bound)))


def _decoded(file: Path, document: bytes) -> WrappedKey:
    try:
        return msgspec.json.decode(document, type=WrappedKey)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WrongKeyError(f"{file} is damaged: {error}; a new grant replaces it") from error
