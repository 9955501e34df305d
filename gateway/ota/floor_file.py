"""What the floor of updates is, how its file is authenticated, and what a TPM lends it."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from gateway.ota.trust import Floors, Number

FILE: Final = "floors.json"

Place = Literal["tpm", "file", "refused"]


class Counter(Protocol):
    """A number that nobody can turn back: `gateway.vault.tpm.keystore.TpmKeyStore`. Everything raises VaultError."""

    def floor_count(self) -> int | None: ...
    def floor_forecast(self) -> int: ...
    def count_floor(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the file is held by: a counter, and a key of the vault (32 bytes) that authenticates it.

    The key is asked for each time: what the TPM does not give out now is not known here either.
    """

    counter: Counter
    key: Callable[[], bytes]
    new_key: Callable[[], bytes]  # draws another one; what was authenticated before is not any more


class FloorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where the floor lives, for `gateway ota status`."""

    place: Place = "file"
    counter_index: int | None = None
    number: int = 0  # of the file, which is the counter's
    code: str = ""  # why nothing is installed
    problem: str = ""  # why not in the TPM, or why nothing is installed


class Held(Floors, frozen=True, kw_only=True):
    """The floor: of the metadata, and of the twins."""

    fencing_token: Number = 0

    @classmethod
    def of(cls, floors: Floors, fencing_token: int) -> "Held":
        """Put both together."""
        return cls(**{name: getattr(floors, name) for name in Floors.__struct_fields__}, fencing_token=fencing_token)

    @property
    def floors(self) -> Floors:
        """The part of the metadata."""
        return Floors(**{name: getattr(self, name) for name in Floors.__struct_fields__})


class Document(Held, frozen=True, kw_only=True):
    """The file. One without a `mac` is of a device without a TPM, or from before the floor was bound to it."""

    number: Number = 0
    mac: str = ""  # hex

    @property
    def held(self) -> Held:
        """What it says of the floor."""
        return Held.of(self.floors, self.fencing_token)

    @classmethod
    def sealed(cls, held: Held, number: int, key: bytes) -> "Document":
        """Make one of a number."""
        bare = cls(**msgspec.structs.asdict(held), number=number)
        return msgspec.structs.replace(bare, mac=bare.authenticated(key))

    def authenticated(self, key: bytes) -> str:
        """Return what `mac` must be: keyed BLAKE2b (RFC 7693) over number and floor."""
        fields = (self.number, *(getattr(self, name) for name in _BOUND))
        bound = b"sluice floor of updates v1" + msgspec.json.encode(fields)
        return hashlib.blake2b(bound, key=key, digest_size=32).hexdigest()

    def is_authentic(self, key: bytes) -> bool:
        """Tell whether this device has written it. The `mac` is whatever text stands in the file."""
        return hmac.compare_digest(self.mac.encode(), self.authenticated(key).encode())


_BOUND: Final = ("root", "timestamp", "snapshot", "targets", "keys", "fresh_ns", "fencing_token")


def read_document(file: Path) -> Document:
    """Read the file.

    Raises:
        OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is not there, or cannot be read.
    """
    return decode_document(file.read_bytes())


def decode_document(content: bytes) -> Document:
    """Read what stands in the file. Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError."""
    return msgspec.json.decode(content, type=Document)
