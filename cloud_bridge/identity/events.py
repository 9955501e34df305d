"""What happened to identities: who, what, why, when. Kept in the database, and told in the log once.

The same thing from the same side within an hour is one row with a count, so that nobody can flood the log by asking
again and again.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloud_bridge.identity.database import Transaction

_HOUR_NS: Final = 3600 * 1_000_000_000
_DAY_NS: Final = 24 * _HOUR_NS
MAX_UNPROVEN: Final = 20_000
"""Rows that anybody can cause; the oldest go first. What a device or an operator has proven goes by age alone."""

_COLUMNS: Final = "id, first_ns, last_ns, count, gateway, kind, who, detail, evidence, proven"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something to be remembered.

    `who`: an address, or `operator`, or `bridge`. `evidence`: figures, such as PCR values in hexadecimal digits.
    `proven`: the evidence is signed by the device, or an operator did it.
    """

    gateway: str
    kind: str
    who: str
    detail: str
    evidence: Mapping[str, str] = field(default_factory=dict)
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """A happening as it is kept; `first_ns` and `last_ns` are the bridge's time, UTC."""

    id: str
    first_ns: int
    last_ns: int
    count: int
    happening: Happening


def note(tx: Transaction, happening: Happening, now_ns: int) -> tuple[str, bool]:
    """Keep a happening; return its id, and whether it is a new row."""
    evidence = json.dumps(dict(happening.evidence), sort_keys=True)
    if happening.who == "operator":
        key = secrets.token_bytes(16)  # each deed of a person counts by itself
    else:
        parts = (happening.gateway, happening.kind, happening.who, happening.detail, evidence, str(now_ns // _HOUR_NS))
        key = "\0".join(parts).encode("utf-8", "replace")
    event_id = hashlib.sha256(key).hexdigest()[:16]
    ((count,),) = tx.rows(
        f"INSERT INTO identity_events ({_COLUMNS}) VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?)"  # noqa: S608  # constants
        " ON CONFLICT (id) DO UPDATE SET count = identity_events.count + 1, last_ns = excluded.last_ns"
        " RETURNING count",
        (
            event_id,
            now_ns,
            now_ns,
            happening.gateway,
            happening.kind,
            happening.who,
            happening.detail,
            evidence,
            int(happening.proven),
        ),
    )
    return event_id, count == 1


def find_event(tx: Transaction, event_id: str) -> Event | None:
    """Return one event."""
    rows = tx.rows(f"SELECT {_COLUMNS} FROM identity_events WHERE id = ?", (event_id,))  # noqa: S608  # constants
    return _event(rows[0]) if rows else None


def list_events(tx: Transaction, *, gateway: str | None = None, limit: int = 50) -> list[Event]:
    """Return the latest events, the latest first."""
    where, parameters = ("", ()) if gateway is None else (" WHERE gateway = ?", (gateway,))
    sql = f"SELECT {_COLUMNS} FROM identity_events{where} ORDER BY last_ns DESC, id LIMIT ?"  # noqa: S608  # constants
    return [_event(row) for row in tx.rows(sql, (*parameters, limit))]


def prune_events(tx: Transaction, now_ns: int, days: float) -> int:
    """Remove what is old, and what anybody may have caused beyond a number; return how many rows went."""
    gone = tx.change("DELETE FROM identity_events WHERE last_ns < ?", (now_ns - int(days * _DAY_NS),))
    return gone + tx.change(
        "DELETE FROM identity_events WHERE proven = 0 AND id NOT IN"
        " (SELECT id FROM identity_events WHERE proven = 0 ORDER BY last_ns DESC, id LIMIT ?)",
        (MAX_UNPROVEN,),
    )


def _event(row: tuple[object, ...]) -> Event:
    event_id, first_ns, last_ns, count, gateway, kind, who, detail, evidence, proven = row
    happening = Happening(str(gateway), str(kind), str(who), str(detail), json.loads(str(evidence)), bool(proven))
    return Event(str(event_id), int(str(first_ns)), int(str(last_ns)), int(str(count)), happening)
