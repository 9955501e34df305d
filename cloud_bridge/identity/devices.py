"""The devices that are enrolled, their certificates, and the connections that have to be cut."""

import secrets
from dataclasses import dataclass
from typing import Final

from cloud_bridge.identity.database import Transaction
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.issuer import Issued, Revoked, utc
from gateway.wire.identity import Level

_SECOND_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _SECOND_NS
_BROKER_BEHIND_NS: Final = 300 * _SECOND_NS
"""So much a broker's clock may be behind, by which it judges what has expired."""
_CUTS_AFTER_SECONDS: Final = (0, 5, 20, 45)
"""After a revocation. More than once: the broker may take the new revocation list a little later than the first cut."""

_COLUMNS: Final = (
    "gateway, level, ek_digest, ek_trusted, ak_public, recipient, state, version, address, enrolled_ns, attested_ns,"
    " certified_until_ns, resets, firmware, clock_off_ns, revoked_ns, revoked_why"
)


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it was last attested.

    `ek_digest`: SHA-256 of the endorsement key's SubjectPublicKeyInfo, empty at level `software`. `state`: the name
    of its boot state. `resets`: reboots the TPM has counted. `clock_off_ns`: the device's clock minus the bridge's.
    """

    gateway: str
    level: Level
    ek_digest: str
    ek_trusted: bool
    ak_public: bytes
    recipient: bytes
    state: str
    version: str
    address: str
    enrolled_ns: int
    attested_ns: int
    certified_until_ns: int
    resets: int = 0
    firmware: str = ""
    clock_off_ns: int | None = None
    revoked_ns: int | None = None
    revoked_why: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that must end: after a revocation, or because a certificate it may rest on has expired.

    `serial`: of the certificate, empty after a revocation. `banned`: the device holds no certificate that is good.
    """

    id: str
    gateway: str
    serial: str
    banned: bool


def find_device(tx: Transaction, gateway: str) -> Device | None:
    """Return a device by its name."""
    rows = tx.rows(f"SELECT {_COLUMNS} FROM identity_devices WHERE gateway = ?", (gateway,))  # noqa: S608  # constants
    return _device(rows[0]) if rows else None


def hold_device(tx: Transaction, gateway: str) -> Device | None:
    """Return a device, and keep others from changing it until this transaction ends."""
    tx.change("UPDATE identity_devices SET gateway = gateway WHERE gateway = ?", (gateway,))
    return find_device(tx, gateway)


def list_devices(tx: Transaction) -> list[Device]:
    """Return all devices by name."""
    return [_device(row) for row in tx.rows(f"SELECT {_COLUMNS} FROM identity_devices ORDER BY gateway")]  # noqa: S608


def put_device(tx: Transaction, device: Device) -> None:
    """Keep a device that was enrolled; takes the place of one with the same name.

    The row stays the same one, so that somebody who waits to revoke the device finds it.
    """
    others = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[1:])
    tx.change(
        f"INSERT INTO identity_devices ({_COLUMNS})"  # noqa: S608  # constants
        f" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (gateway) DO UPDATE SET {others}",
        (
            device.gateway,
            device.level,
            device.ek_digest,
            int(device.ek_trusted),
            device.ak_public,
            device.recipient,
            device.state,
            device.version,
            device.address,
            device.enrolled_ns,
            device.attested_ns,
            device.certified_until_ns,
            device.resets,
            device.firmware,
            device.clock_off_ns,
            device.revoked_ns,
            device.revoked_why,
        ),
    )


def update_device(tx: Transaction, device: Device) -> bool:
    """Keep what an attestation has told; return False when the device was revoked or replaced meanwhile."""
    return bool(
        tx.change(
            "UPDATE identity_devices SET recipient = ?, state = ?, version = ?, address = ?, attested_ns = ?,"
            " certified_until_ns = ?, resets = ?, firmware = ?, clock_off_ns = ?"
            " WHERE gateway = ? AND ak_public = ? AND revoked_ns IS NULL",
            (
                device.recipient,
                device.state,
                device.version,
                device.address,
                device.attested_ns,
                device.certified_until_ns,
                device.resets,
                device.firmware,
                device.clock_off_ns,
                device.gateway,
                device.ak_public,
            ),
        )
    )


def note_certificate(tx: Transaction, gateway: str, issued: Issued, now_ns: int) -> bool:
    """Remember a certificate until it is long expired; return False when its serial number is another one's already."""
    sql = (
        "INSERT INTO identity_certificates (serial, gateway, issued_ns, not_after_ns) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (serial) DO NOTHING"
    )
    not_after_ns = int(issued.not_after.timestamp()) * _SECOND_NS
    return bool(tx.change(sql, (issued.serial, gateway, now_ns, not_after_ns)))


def revoke_device(tx: Transaction, gateway: str, why: str, now_ns: int) -> int:
    """Take a device's identity back: its certificates, its connections, its claims. Return how many certificates.

    Raises:
        IdentityError: there is no such device.
    """
    sql = "UPDATE identity_devices SET revoked_ns = ?, revoked_why = ? WHERE gateway = ? AND revoked_ns IS NULL"
    if not tx.change(sql, (now_ns, why, gateway)) and find_device(tx, gateway) is None:
        raise IdentityError(f"there is no device {gateway}; `cloud-bridge identity devices` lists them")
    return revoke_certificates(tx, gateway, now_ns)


def revoke_certificates(tx: Transaction, gateway: str, now_ns: int) -> int:
    """Take back the certificates of a name that have not expired, and have its connections cut; return how many."""
    revoked = tx.change(
        "UPDATE identity_certificates SET revoked_ns = ? WHERE gateway = ? AND not_after_ns > ? AND revoked_ns IS NULL",
        (now_ns, gateway, now_ns),
    )
    for seconds in _CUTS_AFTER_SECONDS:
        tx.change(
            "INSERT INTO identity_cuts (id, gateway, due_ns) VALUES (?, ?, ?)",
            (secrets.token_hex(8), gateway, now_ns + seconds * _SECOND_NS),
        )
    return revoked


def revoked_certificates(tx: Transaction, now_ns: int) -> list[Revoked]:
    """Return what belongs into the revocation list: revoked, and not expired since a day."""
    rows = tx.rows(
        "SELECT serial, revoked_ns FROM identity_certificates"
        " WHERE revoked_ns IS NOT NULL AND not_after_ns > ? ORDER BY serial",
        (now_ns - _DAY_NS,),
    )
    return [Revoked(str(serial), utc(int(revoked_ns))) for serial, revoked_ns in rows]


def denied_gateways(tx: Transaction, now_ns: int) -> list[str]:
    """Return whose certificates were revoked and have not expired, for brokers that no list of serial numbers reaches.

    A board that takes such a name over is among them, until what its predecessor holds has expired.
    """
    rows = tx.rows(
        "SELECT DISTINCT gateway FROM identity_certificates"
        " WHERE revoked_ns IS NOT NULL AND not_after_ns > ? ORDER BY gateway",
        (now_ns - _BROKER_BEHIND_NS,),
    )
    return [str(gateway) for (gateway,) in rows]


def due_cuts(tx: Transaction, now_ns: int, limit: int) -> list[Cut]:
    """Return connections that must end now, those of revoked devices first."""
    revoked = tx.rows(
        "SELECT c.id, c.gateway, '', d.certified_until_ns, d.revoked_ns FROM identity_cuts c"
        " LEFT JOIN identity_devices d ON d.gateway = c.gateway WHERE c.due_ns <= ? ORDER BY c.due_ns, c.id LIMIT ?",
        (now_ns, limit),
    )
    expired = tx.rows(
        "SELECT '', c.gateway, c.serial, d.certified_until_ns, d.revoked_ns FROM identity_certificates c"
        " LEFT JOIN identity_devices d ON d.gateway = c.gateway"
        " WHERE c.cut_ns IS NULL AND c.not_after_ns <= ? ORDER BY c.not_after_ns, c.serial LIMIT ?",
        (now_ns, limit - len(revoked)),
    )
    return [
        # Where another device has taken the name over, it is that one that must not be told to be absent.
        Cut(str(cut_id), str(gateway), str(serial), banned=until_ns is None or gone is not None or until_ns <= now_ns)
        for cut_id, gateway, serial, until_ns, gone in (*revoked, *expired)
    ]


def settle_cut(tx: Transaction, cut: Cut, now_ns: int) -> None:
    """Remember that a connection was cut."""
    if cut.serial:
        tx.change("UPDATE identity_certificates SET cut_ns = ? WHERE serial = ?", (now_ns, cut.serial))
    else:
        tx.change("DELETE FROM identity_cuts WHERE id = ?", (cut.id,))


def prune_certificates(tx: Transaction, now_ns: int) -> int:
    """Forget certificates that expired a week ago and were dealt with; return how many."""
    sql = "DELETE FROM identity_certificates WHERE not_after_ns < ? AND cut_ns IS NOT NULL"
    return tx.change(sql, (now_ns - 7 * _DAY_NS,))


def _device(row: tuple[object, ...]) -> Device:
    numbers = {9, 10, 11, 12}
    values = [bytes(value) if isinstance(value, bytes | memoryview) else value for value in row]
    values = [int(str(value)) if at in numbers else value for at, value in enumerate(values)]
    values[3] = bool(values[3])
    return Device(*values)  # type: ignore[arg-type]  # the columns are those of the fields, in order
