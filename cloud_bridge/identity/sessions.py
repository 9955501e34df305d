"""Challenges that were given out: each is good for one try, for a short time, for one name.

They are kept in the database, so that any of several bridges can take the answer.
"""

import secrets
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from cloud_bridge.identity.database import Transaction
from cloud_bridge.identity.errors import RefusedError
from gateway.wire.identity import Level

NONCE_BYTES: Final = 32
_KEPT_NS: Final = 3600 * 1_000_000_000
"""So long a session that was used is told apart from one that never was."""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """What the bridge has to know when the answer comes.

    `claim`: the id of the claim to use up, None when the device proves to have the TPM that is enrolled.
    `secret_digest`: SHA-256 of the credential's secret (hexadecimal digits), None without a credential. `notice`: what
    the device's people are told if the answer is good.
    """

    purpose: Literal["enrol", "renew"]
    level: Level
    ak_public: bytes
    pcrs: list[int] = []
    ek_digest: str = ""
    ek_trusted: bool = False
    claim: str | None = None
    secret_digest: str | None = None
    version: str = ""
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """A challenge that is out; `nonce` is 32 bytes."""

    id: str
    gateway: str
    nonce: bytes
    pending: Pending


def open_session(tx: Transaction, gateway: str, pending: Pending, now_ns: int, seconds: float) -> Session:
    """Give out a challenge."""
    session = Session(secrets.token_hex(16), gateway, secrets.token_bytes(NONCE_BYTES), pending)
    tx.change(
        "INSERT INTO identity_sessions (id, gateway, nonce, pending, expires_ns) VALUES (?, ?, ?, ?, ?)",
        (session.id, gateway, session.nonce, msgspec.json.encode(pending), now_ns + int(seconds * 1e9)),
    )
    return session


def take_session(tx: Transaction, session_id: str, gateway: str, now_ns: int) -> Session:
    """Take a challenge back with the answer to it. Commit this whatever the answer is worth.

    Raises:
        RefusedError: `session-unknown`, `session-used` or `session-expired`.
    """
    rows = tx.rows(
        "SELECT nonce, pending, expires_ns FROM identity_sessions WHERE id = ? AND gateway = ?", (session_id, gateway)
    )
    if not rows:
        raise RefusedError("session-unknown", "there is no such challenge for this device; ask for a new one")
    ((nonce, pending, expires_ns),) = rows
    sql = "UPDATE identity_sessions SET used_ns = ? WHERE id = ? AND used_ns IS NULL"
    if not tx.change(sql, (now_ns, session_id)):
        raise RefusedError("session-used", "this challenge was answered already: a replay, or an answer that was lost")
    if expires_ns <= now_ns:
        raise RefusedError("session-expired", "this challenge has expired; ask for a new one")
    return Session(session_id, gateway, bytes(nonce), msgspec.json.decode(bytes(pending), type=Pending))


def prune_sessions(tx: Transaction, now_ns: int) -> int:
    """Forget old challenges; return how many."""
    return tx.change("DELETE FROM identity_sessions WHERE expires_ns < ?", (now_ns - _KEPT_NS,))
