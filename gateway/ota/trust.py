"""What may be believed of a repository: the client workflow of TUF (§5), with floors that outlive the cache. Pure.

Signatures, versions and expiry are checked by python-tuf. Added here: the time is handed in, and what was once accepted
is remembered apart from the metadata (`Floors`), so that who deletes the cache cannot make the device forget it.

There are no delegations: a release is listed by the targets role itself, or not at all.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile
from tuf.api.serialization import DeserializationError

# The part of ngclient that does no I/O. It has no public name; tests/gateway/ota/test_trust.py holds it to what is
# needed here, and pyproject.toml holds tuf below the next major version.
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from gateway.ota.errors import (
    ExpiredError,
    MalformedMetadataError,
    MismatchError,
    RollbackError,
    SignatureError,
    TrustError,
)

Role = Literal["root", "timestamp", "snapshot", "targets"]

MAX_BYTES: Final[dict[Role, int]] = {
    "root": 512_000,
    "timestamp": 16_384,
    "snapshot": 2_000_000,
    "targets": 5_000_000,
}
"""So much of each role's metadata is read at most, before anything of it is parsed; as in python-tuf."""

MAX_ROOTS: Final = 256
"""So many new roots are followed in one refresh."""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Floors(msgspec.Struct, frozen=True, kw_only=True):
    """What was accepted before; nothing older is. Written to disk apart from the metadata.

    `keys` names the online keys that the versions were accepted under: when the root replaces one of them, the numbers
    begin anew (§5.3.11), as after somebody has used a stolen key to push them up. The root's own version never does.
    """

    root: Number = 0
    timestamp: Number = 0
    snapshot: Number = 0
    targets: Number = 0
    keys: str = ""
    fresh_ns: Number = 0  # UTC, of the last refresh that went through; no clock is believed that is before it

    def joined(self, other: "Floors") -> "Floors":
        """Return the higher of both; under different keys the versions are those of the newer root."""
        newer = other if other.root > self.root else self
        names = ("fresh_ns", *_ONLINE) if self.keys == other.keys else ("fresh_ns",)
        higher = {name: max(getattr(self, name), getattr(other, name)) for name in names}
        return msgspec.structs.replace(newer, **higher)


_ONLINE: Final = ("timestamp", "snapshot", "targets")


class Trust:
    """The metadata that is believed, added role by role in the order of §5.3 to §5.6. Good for one refresh.

    Every `add_…` raises a `TrustError`, and what it was given must not be kept then.
    """

    def __init__(self, anchor: bytes, floors: Floors, now_ns: int, *, offline_ns: int = 0) -> None:
        """Begin with the root that came with the device; its signatures are checked, its expiry is not (§5.3.10).

        Args:
            anchor: that root.
            floors: what was accepted before.
            now_ns: UTC.
            offline_ns: how much longer than signed timestamp and snapshot count, on a site that no fresh ones reach.

        Raises:
            TrustError: it is no root, or not signed by itself.
        """
        with _translated("root"):
            self._set = TrustedMetadataSet(anchor, EnvelopeType.METADATA)
        self._now = self._set.reference_time = datetime.fromtimestamp(now_ns / 1e9, UTC)
        self._offline = timedelta(microseconds=offline_ns // 1000)
        self.floors = floors

    # ---- the root ----------------------------------------------------------------------------------------

    @property
    def root_version(self) -> int:
        """The version of the newest root that is believed."""
        return self._set.root.version

    @property
    def consistent(self) -> bool:
        """Whether files carry version or digest in their names (§6.2)."""
        return bool(self._set.root.consistent_snapshot)

    def add_root(self, data: bytes) -> None:
        """Follow one more root: signed by the threshold of the one before, and by its own."""
        with _translated("root"):
            self._set.update_root(data)

    def end_of_roots(self) -> None:
        """No newer root is there.

        Raises:
            RollbackError: this device has known a newer one.
        """
        root = self._set.root
        self._not_below("root", root.version)
        keys = self._online_keys()
        if keys != self.floors.keys:
            self.floors = msgspec.structs.replace(self.floors, timestamp=0, snapshot=0, targets=0, keys=keys)
        self._raise_floor("root", root.version)

    # ---- the other roles ---------------------------------------------------------------------------------

    def add_timestamp(self, data: bytes) -> bool:
        """Take a timestamp; False: it has the version that is there already, which is kept (§5.4.3)."""
        if self._set.root.is_expired(self._now):
            raise ExpiredError(
                f"root: it has expired on {self._set.root.expires:%Y-%m-%d}; the repository must sign a new one, or "
                "this device's clock is ahead"
            )
        try:
            with _translated("timestamp"), self._patiently():
                self._set.update_timestamp(data)
        except _SameVersion:
            return False
        timestamp = self._set.timestamp
        self._not_below("timestamp", timestamp.version)
        self._not_below("snapshot", timestamp.snapshot_meta.version)
        self._raise_floor("timestamp", timestamp.version)
        return True

    @property
    def snapshot_wanted(self) -> tuple[int, int]:
        """Version of the snapshot that the timestamp names, and how long it may be."""
        meta = self._set.timestamp.snapshot_meta
        return meta.version, min(meta.length or MAX_BYTES["snapshot"], MAX_BYTES["snapshot"])

    def add_snapshot(self, data: bytes, *, cached: bool = False) -> None:
        """Take a snapshot. One from the cache may be older than the timestamp wants: it is held against the new one."""
        with _translated("snapshot"), self._patiently():
            self._set.update_snapshot(data, trusted=cached)
        snapshot = self._set.snapshot
        self._not_below("snapshot", snapshot.version)
        self._not_below("targets", snapshot.meta["targets.json"].version if "targets.json" in snapshot.meta else 0)
        self._raise_floor("snapshot", snapshot.version)

    @property
    def targets_wanted(self) -> tuple[int, int]:
        """Version of the targets that the snapshot names, and how long they may be.

        Raises:
            MismatchError: the snapshot names none.
        """
        meta = self._set.snapshot.meta.get("targets.json")
        if meta is None:
            raise MismatchError("snapshot: names no targets.json")
        return meta.version, min(meta.length or MAX_BYTES["targets"], MAX_BYTES["targets"])

    def add_targets(self, data: bytes) -> None:
        """Take the list of what is offered."""
        # The set looks once more at whether the snapshot has expired; the list itself counts as long as it says.
        with _translated("targets"), self._patiently():
            self._set.update_targets(data)
        if self._set.targets.is_expired(self._now):
            raise ExpiredError(
                f"targets: the list has expired on {self._set.targets.expires:%Y-%m-%d}; the repository must be signed "
                "anew, or this device's clock is ahead"
            )
        self._raise_floor("targets", self._set.targets.version)

    @property
    def files(self) -> Mapping[str, TargetFile]:
        """What is offered, by target path; only after `add_targets`."""
        return self._set.targets.targets

    @property
    def expires_ns(self) -> int:
        """Until when this is believed without a refresh, UTC; only after `add_targets`."""
        ends = [self._set.root.expires, self._set.targets.expires]
        ends += [each.expires + self._offline for each in (self._set.timestamp, self._set.snapshot)]
        return min(int(each.timestamp()) for each in ends) * 1_000_000_000

    # ---- inside ------------------------------------------------------------------------------------------

    @contextmanager
    def _patiently(self) -> Iterator[None]:
        """Judge as if it were earlier by what a site without fresh metadata is granted."""
        self._set.reference_time = self._now - self._offline
        try:
            yield
        finally:
            self._set.reference_time = self._now

    def _not_below(self, role: Role, version: int) -> None:
        floor = getattr(self.floors, role)
        if version < floor:
            raise RollbackError(
                f"{role}: version {version} is older than {floor}, which this device has accepted before; somebody "
                "replays an old state, or the repository was restored from a backup: then publish until it is past that"
            )

    def _raise_floor(self, role: Role, version: int) -> None:
        self.floors = msgspec.structs.replace(self.floors, **{role: max(getattr(self.floors, role), version)})

    def _online_keys(self) -> str:
        parts = []
        for name in _ONLINE:
            role = self._set.root.roles[name]
            parts.append(f"{name}:{role.threshold}:{','.join(sorted(role.keyids))}")
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


class _SameVersion(Exception):
    """The timestamp that came has the version of the one that is there."""


@contextmanager
def _translated(role: Role) -> Iterator[None]:
    """Turn python-tuf's errors into ours, which say what they mean for a device."""
    try:
        yield
    except EqualVersionNumberError:
        raise _SameVersion from None
    except BadVersionNumberError as error:
        raise RollbackError(
            f"{role}: {error}: this copy of the repository is older than what this device knows, or put together from "
            "several; take a newer one (`cloud-bridge registry export`)"
        ) from error
    except ExpiredMetadataError as error:
        raise ExpiredError(
            f"{role}: {error}; the repository must be refreshed, or this device's clock is ahead, or newer metadata is "
            "held back from it; on a site off any network: a newer stick, or `ota.offline_days`"
        ) from error
    except UnsignedMetadataError as error:
        raise SignatureError(f"{role}: {error}") from error
    except LengthOrHashMismatchError as error:
        raise MismatchError(f"{role}: {error}") from error
    except DeserializationError as error:
        raise MalformedMetadataError(f"{role}: cannot be read: {error.__cause__ or error}") from error
    except RepositoryError as error:
        raise TrustError(f"{role}: {error}") from error
    except ValueError as error:  # what parses, but is no sensible value, such as a date that is none
        raise MalformedMetadataError(f"{role}: {error}") from error
