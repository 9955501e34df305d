"""What each device is to run, under a fencing token that only rises.

A token is one more than the last one, and never less than the clock in milliseconds. The first keeps the order when the
clock is set back; the second when the database is put back from an older copy, in which the last token is an old one.
Should both happen, the device says in its report which token it has, refuses the lower one, and is given its
twin again under a higher one (`overtake`).

A clock that was decades ahead gives tokens that no device believes (`gateway.wire.tokens`). Once it is right they count
no more: the next token is the time again, and whoever reports is given its twin anew.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from cloud_bridge.identity.database import Transaction
from gateway.wire import tokens
from gateway.wire.messages import Assignment, ModelRef, Twin, kind_of
from gateway.wire.times import rfc3339

_MS_NS: Final = 1_000_000
_COLUMNS: Final = "gateway, version, token, at_ns, due_ns, assignments, features"
_assignments: Final = msgspec.json.Decoder(list[Assignment])
_features: Final = msgspec.json.Decoder(dict[str, bool])


@dataclass(frozen=True, slots=True)
class Desired:
    """The desired twin of a device; it is told from `due_ns` on."""

    gateway: str
    version: int
    token: int
    at_ns: int
    due_ns: int
    assignments: tuple[Assignment, ...] = ()
    features: Mapping[str, bool] | None = None

    def model_of(self, pipeline: str) -> ModelRef | None:
        """Return what a pipeline is to run, None if nothing is said about it."""
        return next((one.model for one in self.assignments if one.pipeline == pipeline), None)

    @property
    def message(self) -> Twin:
        """The twin as it travels."""
        return Twin(
            version=self.version,
            fencing_token=self.token,
            at=rfc3339(self.at_ns),
            assignments=list(self.assignments),
            features=dict(self.features or {}),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One pipeline of one device gets this model; None: nothing is said about it any more."""

    gateway: str
    pipeline: str
    model: ModelRef | None
    due_ns: int


def next_token(tx: Transaction, now_ns: int, above: int = 0) -> int:
    """Take a new token, above `above` and all that were given out, but for those that no device believes."""
    lowest = max(now_ns // _MS_NS, above + 1)
    ((token,),) = tx.rows(
        "INSERT INTO fleet_facts (name, value) VALUES ('token', ?)"
        " ON CONFLICT (name) DO UPDATE SET value = CASE WHEN fleet_facts.value BETWEEN excluded.value AND ?"
        " THEN fleet_facts.value + 1 ELSE excluded.value END RETURNING value",
        (lowest, tokens.of_twin_ms(now_ns)),
    )
    return int(token)


def find_desired(tx: Transaction, gateways: Collection[str] | None = None) -> dict[str, Desired]:
    """Return the desired twins of some devices, or of all."""
    rows = tx.rows(f"SELECT {_COLUMNS} FROM fleet_desired ORDER BY gateway")  # noqa: S608  # constants
    wanted = None if gateways is None else set(gateways)
    return {row[0]: _desired(row) for row in rows if wanted is None or row[0] in wanted}


def one_desired(tx: Transaction, gateway: str) -> Desired | None:
    """Return the desired twin of one device."""
    rows = tx.rows(f"SELECT {_COLUMNS} FROM fleet_desired WHERE gateway = ?", (gateway,))  # noqa: S608  # constants
    return _desired(rows[0]) if rows else None


def due_tokens(tx: Transaction, now_ns: int) -> dict[str, int]:
    """Return the tokens of all twins that may be told by now."""
    return dict(
        tx.rows("SELECT gateway, token FROM fleet_desired WHERE due_ns <= ? ORDER BY due_ns, gateway", (now_ns,))
    )


def apply_changes(tx: Transaction, changes: Iterable[Change], now_ns: int, above: int = 0) -> int:
    """Change desired twins under one new token, which is returned. What is said about other pipelines stays.

    A twin is told as a whole. While the device has not taken what it was given before, a change that may take its time
    does not put that off: a release that is given back for one pipeline never waits for the rollout of another.
    """
    token = next_token(tx, now_ns, above)
    for change in changes:
        known = one_desired(tx, change.gateway) or Desired(change.gateway, 0, 0, now_ns, now_ns)
        kept = [one for one in known.assignments if one.pipeline != change.pipeline]
        if change.model is not None:
            kept.append(Assignment(pipeline=change.pipeline, model=change.model, kind=kind_of(change.pipeline)))
        _put(
            tx,
            replace(
                known,
                version=known.version + 1,
                token=token,
                at_ns=now_ns,
                due_ns=_due_ns(tx, known, change),
                assignments=tuple(kept),
            ),
        )
    return token


def _due_ns(tx: Transaction, known: Desired, change: Change) -> int:
    reported = tx.rows("SELECT token FROM fleet_reported WHERE gateway = ?", (change.gateway,))
    is_taken = bool(reported) and int(reported[0][0]) >= known.token
    return change.due_ns if is_taken or not known.token else min(known.due_ns, change.due_ns)


def set_features(tx: Transaction, gateways: Iterable[str], features: Mapping[str, bool | None], now_ns: int) -> int:
    """Switch features of devices on or off, or (None) leave them to the device; return the new token."""
    token = next_token(tx, now_ns)
    for gateway in gateways:
        known = one_desired(tx, gateway) or Desired(gateway, 0, 0, now_ns, now_ns)
        merged = {**(known.features or {}), **features}
        kept = {name: value for name, value in merged.items() if value is not None}
        _put(tx, Desired(gateway, known.version + 1, token, now_ns, now_ns, known.assignments, kept))
    return token


def overtake(tx: Transaction, gateway: str, reported: int, now_ns: int) -> int | None:
    """Give a device its twin again, above the token that it reports; None if it has none of ours, or needs none.

    It needs one, too, where the token of its twin is one that no device believes.

    A token beyond belief is passed over: it would use up the tokens of the whole fleet. One that is only just believed
    on the device does not raise the tokens of the others.
    """
    known = one_desired(tx, gateway)
    if known is None or reported > tokens.of_report_ms(now_ns):
        return None
    if reported <= known.token <= tokens.of_report_ms(now_ns) + 1:
        return None
    above = reported if reported <= tokens.of_fleet_ms(now_ns) else 0
    token = max(next_token(tx, now_ns, above), reported + 1)
    _put(tx, Desired(gateway, known.version + 1, token, now_ns, now_ns, known.assignments, known.features))
    return token


def _put(tx: Transaction, desired: Desired) -> None:
    tx.change(
        f"INSERT INTO fleet_desired ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608  # constants
        " ON CONFLICT (gateway) DO UPDATE SET version = excluded.version, token = excluded.token,"
        " at_ns = excluded.at_ns, due_ns = excluded.due_ns,"
        " assignments = excluded.assignments, features = excluded.features",
        (
            desired.gateway,
            desired.version,
            desired.token,
            desired.at_ns,
            desired.due_ns,
            msgspec.json.encode(desired.assignments).decode(),
            msgspec.json.encode(dict(desired.features or {})).decode(),
        ),
    )


def _desired(row: tuple[object, ...]) -> Desired:
    gateway, version, token, at_ns, due_ns, assignments, features = row
    return Desired(
        str(gateway),
        int(str(version)),
        int(str(token)),
        int(str(at_ns)),
        int(str(due_ns)),
        tuple(_assignments.decode(str(assignments))),
        _features.decode(str(features)),
    )
