"""The list of approved boot states."""

import json
import re
from dataclasses import dataclass
from typing import Final

from cloud_bridge.identity.database import Transaction
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.states import BootState, pcrs_of

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+:-]{0,63}")


@dataclass(frozen=True, slots=True)
class Approval:
    """An approved state; `origin` says where the values come from."""

    state: BootState
    created_ns: int
    origin: str


def approve(tx: Transaction, approval: Approval) -> None:
    """Approve a boot state.

    Raises:
        IdentityError: the name cannot be used, or is taken.
    """
    name = approval.state.name
    if _NAME.fullmatch(name) is None:
        raise IdentityError(f"{name!r} is no name for a state: letters, digits and _.+:-, up to 64 of them")
    pcrs = json.dumps({str(number): value.hex() for number, value in sorted(approval.state.pcrs.items())})
    added = tx.change(
        "INSERT INTO identity_states (name, pcrs, created_ns, origin) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (name) DO NOTHING",
        (name, pcrs, approval.created_ns, approval.origin),
    )
    if not added:
        raise IdentityError(f"there is a state {name} already; remove it first, or take another name")


def disapprove(tx: Transaction, name: str) -> None:
    """Remove a state: devices that are in it get no new certificate.

    Raises:
        IdentityError: there is none of this name.
    """
    if not tx.change("DELETE FROM identity_states WHERE name = ?", (name,)):
        raise IdentityError(f"there is no state {name}")


def list_approvals(tx: Transaction) -> list[Approval]:
    """Return all approved states by name."""
    rows = tx.rows("SELECT name, pcrs, created_ns, origin FROM identity_states ORDER BY name")
    return [
        Approval(BootState(str(name), pcrs_of(json.loads(str(pcrs)))), int(created_ns), str(origin))
        for name, pcrs, created_ns, origin in rows
    ]
