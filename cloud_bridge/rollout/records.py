"""Rollouts as they are kept. Whatever changes one is a transition: state and reason in one transaction, once."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from cloud_bridge.identity.database import Transaction
from cloud_bridge.rollout.errors import RolloutError
from cloud_bridge.rollout.gates import Finding, Seen, Verdict
from cloud_bridge.rollout.plan import Member, Phase, Plan
from cloud_bridge.rollout.releases import Release, fit_release

_ROLLOUT: Final = (
    "id, created_ns, updated_ns, pipeline, phase, reason, revision, plan, wave, wave_ns, cursor, settled_ns, looks,"
    " seen_events, seen_hours, verdict"
)
_MEMBER: Final = "rollout, gateway, wave, release, previous, assigned_ns, due_ns, token, returned"

_plans: Final = msgspec.json.Decoder(Plan)
_verdicts: Final = msgspec.json.Decoder(tuple[Finding, ...])


class ChangedMeanwhileError(RolloutError):
    """Somebody else has moved the rollout on; look again."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout. `wave` counts from 0; `wave_ns` is when the wave was given out, None before that.

    `cursor`: the last record of the store before the wave. `revision` rises with every transition.
    """

    id: str
    created_ns: int
    updated_ns: int
    phase: Phase
    reason: str
    revision: int
    plan: Plan
    wave: int = 0
    wave_ns: int | None = None
    cursor: int = 0
    settled_ns: int | None = None
    seen: Seen = field(default_factory=Seen)
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Verdict | None:
        """What the last look of this wave found."""
        return Verdict(self.seen.looks, self.findings) if self.findings else None


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of the history of a rollout. `who`: `bridge`, `operator`, or what acts for one."""

    number: int
    at_ns: int
    kind: str
    wave: int
    who: str
    detail: str


def add_rollout(tx: Transaction, rollout: Rollout, who: str) -> None:
    """Keep a new rollout."""
    marks = ", ".join("?" * len(_ROLLOUT.split(",")))
    tx.change(f"INSERT INTO rollouts ({_ROLLOUT}) VALUES ({marks})", _values(rollout))  # noqa: S608  # constants
    _note(tx, rollout, "created", who, rollout.reason)


def move(
    tx: Transaction, before: Rollout, after: Rollout, kind: str, *, who: str = "bridge", detail: str = ""
) -> Rollout:
    """Change a rollout and note why; return it with its new revision.

    Raises:
        ChangedMeanwhileError: it is not any more what `before` says; nothing was changed.
    """
    moved = replace(after, revision=before.revision + 1)
    columns = ", ".join(f"{name.strip()} = ?" for name in _ROLLOUT.split(","))
    changed = tx.change(
        f"UPDATE rollouts SET {columns} WHERE id = ? AND revision = ?",  # noqa: S608  # constants
        (*_values(moved), before.id, before.revision),
    )
    if not changed:
        raise ChangedMeanwhileError(f"rollout {before.id} was changed meanwhile; look again")
    _note(tx, moved, kind, who, detail or moved.reason)
    return moved


def keep_look(tx: Transaction, rollout: Rollout, seen: Seen, findings: tuple[Finding, ...]) -> Rollout:
    """Remember a look: what it spent is spent, whatever becomes of the bridge. No line in the history."""
    after = replace(rollout, seen=seen, findings=findings)
    changed = tx.change(
        "UPDATE rollouts SET looks = ?, seen_events = ?, seen_hours = ?, verdict = ? WHERE id = ? AND revision = ?",
        (seen.looks, seen.events, seen.hours, _plain(findings), rollout.id, rollout.revision),
    )
    if not changed:
        raise ChangedMeanwhileError(f"rollout {rollout.id} was changed meanwhile; look again")
    return after


def keep_reason(tx: Transaction, rollout: Rollout, reason: str) -> Rollout:
    """Say what a rollout waits for. No line in the history.

    Raises:
        ChangedMeanwhileError: it is not any more what `rollout` says; nothing was changed.
    """
    after = replace(rollout, reason=reason)
    sql = "UPDATE rollouts SET reason = ? WHERE id = ? AND revision = ?"
    if not tx.change(sql, (_values(after)[5], rollout.id, rollout.revision)):
        raise ChangedMeanwhileError(f"rollout {rollout.id} was changed meanwhile; look again")
    return after


def find_rollout(tx: Transaction, rollout_id: str) -> Rollout:
    """Return a rollout by its id, or by the beginning of it.

    Raises:
        RolloutError: there is none, or more than one.
    """
    if not rollout_id:  # a variable that was not set: it would name the only rollout there is
        raise RolloutError("no rollout is named; see `cloud-bridge rollout list`")
    rows = tx.rows(
        f"SELECT {_ROLLOUT} FROM rollouts WHERE substr(id, 1, ?) = ? ORDER BY id LIMIT 2",  # noqa: S608  # constants
        (len(rollout_id), rollout_id),
    )
    if len(rows) != 1:
        found = "no rollout" if not rows else "more than one rollout"
        raise RolloutError(f"{found} has an id that begins with {rollout_id!r}; see `cloud-bridge rollout list`")
    return _rollout(rows[0])


def list_rollouts(tx: Transaction, *, only_open: bool = False, limit: int = 100) -> list[Rollout]:
    """Return rollouts, the latest first."""
    where = " WHERE phase IN ('running', 'paused', 'halted')" if only_open else ""
    sql = f"SELECT {_ROLLOUT} FROM rollouts{where} ORDER BY created_ns DESC, id LIMIT ?"  # noqa: S608  # constants
    return [_rollout(row) for row in tx.rows(sql, (limit,))]


def put_members(tx: Transaction, rollout: Rollout, members: Iterable[Member]) -> None:
    """Keep members; one that is there already is replaced."""
    names = [name.strip() for name in _MEMBER.split(",")]
    others = ", ".join(f"{name} = excluded.{name}" for name in names[2:])
    for one in members:
        tx.change(
            f"INSERT INTO rollout_members ({_MEMBER}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608  # constants
            f" ON CONFLICT (rollout, gateway) DO UPDATE SET {others}",
            (
                rollout.id,
                one.gateway,
                one.wave,
                str(one.release),
                "" if one.previous is None else str(one.previous),
                one.assigned_ns,
                one.due_ns,
                one.token,
                int(one.returned),
            ),
        )


def list_members(tx: Transaction, rollout_id: str) -> list[Member]:
    """Return all members of a rollout, by wave and name."""
    sql = f"SELECT {_MEMBER} FROM rollout_members WHERE rollout = ? ORDER BY wave, gateway"  # noqa: S608  # constants
    return [_member(row) for row in tx.rows(sql, (rollout_id,))]


def history(tx: Transaction, rollout_id: str) -> list[Transition]:
    """Return what happened to a rollout, the first thing first."""
    rows = tx.rows(
        "SELECT number, at_ns, kind, wave, who, detail FROM rollout_history WHERE rollout = ? ORDER BY number",
        (rollout_id,),
    )
    return [Transition(*row) for row in rows]


def _note(tx: Transaction, rollout: Rollout, kind: str, who: str, detail: str) -> None:
    tx.change(
        "INSERT INTO rollout_history (rollout, number, at_ns, kind, wave, who, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (rollout.id, rollout.revision, rollout.updated_ns, kind, rollout.wave, who, detail.replace("\0", "")[:1000]),
    )


def _plain(findings: tuple[Finding, ...]) -> str:
    return msgspec.json.encode(findings).decode()


def _values(one: Rollout) -> tuple[Any, ...]:
    return (
        one.id,
        one.created_ns,
        one.updated_ns,
        one.plan.pipeline,
        one.phase,
        one.reason.replace("\0", "")[:1000],
        one.revision,
        msgspec.json.encode(one.plan).decode(),
        one.wave,
        one.wave_ns,
        one.cursor,
        one.settled_ns,
        one.seen.looks,
        one.seen.events,
        one.seen.hours,
        _plain(one.findings),
    )


def _rollout(row: tuple[Any, ...]) -> Rollout:
    (rollout_id, created_ns, updated_ns, _, phase, reason, revision, plan, wave, wave_ns, cursor, settled_ns) = row[:12]
    looks, events, hours, verdict = row[12:]
    return Rollout(
        rollout_id,
        created_ns,
        updated_ns,
        phase,
        reason,
        revision,
        _plans.decode(plan),
        wave,
        wave_ns,
        cursor,
        settled_ns,
        Seen(looks, events, hours),
        _verdicts.decode(verdict),
    )


def _member(row: tuple[Any, ...]) -> Member:
    _, gateway, wave, release, previous, assigned_ns, due_ns, token, returned = row
    name, _, version = release.rpartition("@")
    # What is kept is read, whatever it is: a rollout that cannot be read could not be aborted either.
    return Member(
        gateway, wave, Release(name, version), fit_release(previous), assigned_ns, due_ns, token, bool(returned)
    )
