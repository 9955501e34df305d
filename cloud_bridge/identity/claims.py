"""Claims: an operator's word that a device may take a name, once and for a while.

A claim is either a secret (160 random bits; kept as its SHA-256, which needs no salt at that length) or an
endorsement key that was announced.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from cloud_bridge.identity.database import Transaction
from cloud_bridge.identity.errors import IdentityError, RefusedError

_TOKEN_BYTES: Final = 20
_COLUMNS: Final = "id, gateway, kind, replaces, created_ns, expires_ns, used_ns"


@dataclass(frozen=True, slots=True)
class Claim:
    """`kind`: `token` or `ek`. `replaces`: it may take the name from the device that has it now."""

    id: str
    gateway: str
    kind: str
    replaces: bool
    created_ns: int
    expires_ns: int
    used_ns: int | None


def new_token() -> str:
    """Make the secret of a claim: 160 bits, as base 32 in lower case, which people can read aloud."""
    alphabet = "abcdefghjkmnpqrstuvwxyz023456789"
    return "".join(alphabet[byte & 31] for byte in secrets.token_bytes(_TOKEN_BYTES * 8 // 5))


def id_of_token(token: str) -> str:
    """Return the id of the claim with this secret."""
    return hashlib.sha256(b"token " + token.strip().lower().encode("utf-8", "replace")).hexdigest()


def id_of_ek(ek_digest: str) -> str:
    """Return the id of the claim for an endorsement key."""
    return f"ek-{ek_digest}"


def add_claim(tx: Transaction, claim: Claim) -> None:
    """Keep a claim; an announced endorsement key may be announced anew.

    Raises:
        IdentityError: the name belongs to a device, and the claim does not replace it.
    """
    taken = tx.rows("SELECT revoked_ns FROM identity_devices WHERE gateway = ?", (claim.gateway,))
    if taken and not claim.replaces:
        raise IdentityError(f"{claim.gateway} is enrolled already; --replace lets another device take its name")
    anew = ", ".join(f"{name.strip()} = excluded.{name.strip()}" for name in _COLUMNS.split(","))
    tx.change(  # in one statement: of two who announce it at once, neither fails
        f"INSERT INTO identity_claims ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, NULL)"  # noqa: S608  # constants
        f" ON CONFLICT (id) DO UPDATE SET {anew}",
        (claim.id, claim.gateway, claim.kind, int(claim.replaces), claim.created_ns, claim.expires_ns),
    )


def list_claims(tx: Transaction) -> list[Claim]:
    """Return all claims, the latest first."""
    sql = f"SELECT {_COLUMNS} FROM identity_claims ORDER BY created_ns DESC, id"  # noqa: S608  # constants
    return [_claim(row) for row in tx.rows(sql)]


def drop_claims(tx: Transaction, gateway: str) -> int:
    """Take back what was not used yet; return how many."""
    return tx.change("DELETE FROM identity_claims WHERE gateway = ? AND used_ns IS NULL", (gateway,))


def check_claim(tx: Transaction, claim_id: str, gateway: str, now_ns: int) -> Claim:
    """Return a claim that is good for this name now. It is not used up by this.

    Raises:
        RefusedError: `claim-unknown`, `claim-used` or `claim-expired`.
    """
    sql = f"SELECT {_COLUMNS} FROM identity_claims WHERE id = ?"  # noqa: S608  # constants
    rows = tx.rows(sql, (claim_id,))
    claim = _claim(rows[0]) if rows else None
    if claim is None or claim.gateway != gateway:
        # The same words for both: the name that a token belongs to is nobody's business.
        raise RefusedError("claim-unknown", f"this claim is not known for {gateway}; was it mistyped?")
    if claim.used_ns is not None:
        raise RefusedError("claim-used", "this claim was used already; ask the operator for a new one")
    if claim.expires_ns <= now_ns:
        raise RefusedError("claim-expired", "this claim has expired; ask the operator for a new one")
    return claim


def use_claim(tx: Transaction, claim_id: str, gateway: str, now_ns: int) -> Claim:
    """Use a claim up and return it; of two devices that try at once, one succeeds.

    Raises:
        RefusedError: as `check_claim`.
    """
    sql = "UPDATE identity_claims SET used_ns = ? WHERE id = ? AND gateway = ? AND used_ns IS NULL AND expires_ns > ?"
    if not tx.change(sql, (now_ns, claim_id, gateway, now_ns)):
        check_claim(tx, claim_id, gateway, now_ns)
        raise RefusedError("claim-unknown", "this claim was announced anew meanwhile; enrol again")
    ((*row,),) = tx.rows(f"SELECT {_COLUMNS} FROM identity_claims WHERE id = ?", (claim_id,))  # noqa: S608  # constants
    return _claim(tuple(row))


def _claim(row: tuple[object, ...]) -> Claim:
    claim_id, gateway, kind, replaces, created_ns, expires_ns, used_ns = row
    return Claim(
        str(claim_id),
        str(gateway),
        str(kind),
        bool(replaces),
        int(str(created_ns)),
        int(str(expires_ns)),
        None if used_ns is None else int(str(used_ns)),
    )
