"""What is known of drift, in the database. Every function works within a transaction that its caller began."""

import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from cloud_bridge.drift.judging import Basis, Level, Standing
from cloud_bridge.drift.slices import Device, SliceKey, Statistics, joined, statistics_of_json, statistics_to_json
from cloud_bridge.drift.statistics import Comparison
from cloud_bridge.identity.database import Transaction
from gateway.wire.histogram import Histogram


@dataclass(frozen=True, slots=True)
class FindingKey:
    """Which comparison."""

    model: str
    version: str
    scope: str  # device, cohort
    subject: str
    statistic: str
    basis: Basis


@dataclass(frozen=True, slots=True)
class Finding:
    """The latest look at one comparison."""

    key: FindingKey
    standing: Standing
    looked_ns: int
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a device is held against in shape. `origin`: `first-window`, or `operator`."""

    device: Device
    at_ns: int
    origin: str
    statistics: Statistics
    effective: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """A level that changed, or what followed."""

    id: str
    at_ns: int
    model: str
    version: str
    scope: str
    subject: str
    kind: str  # ok, warning, alarm, proposal, retrained, failed, accepted
    detail: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """That a release should be trained again. `state`: open, running, done, failed, dismissed."""

    id: str
    at_ns: int
    model: str
    version: str
    why: str
    state: str
    changed_ns: int
    detail: str


class _ReferenceText(msgspec.Struct):
    statistics: dict[str, Histogram]
    effective: dict[str, float]


# ---- slices --------------------------------------------------------------------------------------


def cursor(tx: Transaction) -> int:
    """Return the id of the last record that was taken."""
    found = tx.rows("SELECT value FROM drift_facts WHERE name = 'cursor'")
    return int(found[0][0]) if found else 0


def move_cursor(tx: Transaction, before: int, to: int) -> bool:
    """Move on; False if another bridge has done so meanwhile, and then nothing more may be written."""
    tx.change("INSERT INTO drift_facts (name, value) VALUES ('cursor', 0) ON CONFLICT (name) DO NOTHING")
    return tx.change("UPDATE drift_facts SET value = ? WHERE name = 'cursor' AND value = ?", (to, before)) == 1


def begin_look(tx: Transaction, now_ns: int, every_ns: int) -> bool:
    """Take the turn to look; False if another bridge has just looked. A time in the future is a clock set back."""
    tx.change("INSERT INTO drift_facts (name, value) VALUES ('look', 0) ON CONFLICT (name) DO NOTHING")
    return (
        tx.change(
            "UPDATE drift_facts SET value = ? WHERE name = 'look' AND (value <= ? OR value > ?)",
            (now_ns, now_ns - every_ns // 2, now_ns),
        )
        == 1
    )


def add_slices(tx: Transaction, slices: Mapping[SliceKey, Statistics]) -> None:
    """Add sums to what is there."""
    for (device, start_s), statistics in slices.items():
        found = tx.rows(
            "SELECT statistics FROM drift_slices"
            " WHERE model = ? AND version = ? AND gateway = ? AND pipeline = ? AND start_s = ?",
            (*device, start_s),
        )
        before = [statistics_of_json(text) for (text,) in found]
        tx.change(
            "INSERT INTO drift_slices (model, version, gateway, pipeline, start_s, statistics)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (model, version, gateway, pipeline, start_s)"
            " DO UPDATE SET statistics = excluded.statistics",
            (*device, start_s, statistics_to_json(joined([*before, statistics]))),
        )


def drop_slices(tx: Transaction, before_s: int) -> int:
    """Forget slices that began before then."""
    return tx.change("DELETE FROM drift_slices WHERE start_s < ?", (before_s,))


def devices_since(tx: Transaction, since_s: int) -> Iterator[tuple[Device, list[tuple[int, Statistics]]]]:
    """Return every device with its slices since then, in order of time, by model and version."""
    rows = tx.rows(
        "SELECT model, version, gateway, pipeline, start_s, statistics FROM drift_slices WHERE start_s >= ?"
        " ORDER BY model, version, gateway, pipeline, start_s",
        (since_s,),
    )
    for device, slices in itertools.groupby(rows, key=lambda row: Device(*row[:4])):
        yield device, [(int(row[4]), statistics_of_json(row[5])) for row in slices]


# ---- references ----------------------------------------------------------------------------------


_HAS_SLICES = (
    "EXISTS (SELECT 1 FROM drift_slices s WHERE s.model = r.model AND s.version = r.version"
    " AND s.gateway = r.gateway AND s.pipeline = r.pipeline AND s.start_s >= ?)"
)


_RUNS_ANOTHER = "EXISTS (SELECT 1 FROM drift_slices s WHERE s.gateway = r.gateway AND s.pipeline = r.pipeline)"


def references(tx: Transaction, since_s: int = 0) -> dict[Device, Reference]:
    """Return the references of the devices that have slices since then: of all others nothing is compared."""
    rows = tx.rows(
        "SELECT model, version, gateway, pipeline, at_ns, origin, statistics FROM drift_references r"  # noqa: S608
        f" WHERE {_HAS_SLICES}",  # constants of this module
        (since_s,),
    )
    found = {}
    for row in rows:
        try:
            text = msgspec.json.decode(row[6], type=_ReferenceText)
        except msgspec.DecodeError:
            continue  # it holds what no histogram may: the device gets another one
        device = Device(*row[:4])
        found[device] = Reference(device, int(row[4]), row[5], text.statistics, text.effective)
    return found


def put_reference(tx: Transaction, reference: Reference) -> None:
    """Write a reference over what was there."""
    text = msgspec.json.encode(_ReferenceText(dict(reference.statistics), dict(reference.effective))).decode()
    tx.change(
        "INSERT INTO drift_references (model, version, gateway, pipeline, at_ns, origin, statistics)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model, version, gateway, pipeline) DO UPDATE SET"
        " at_ns = excluded.at_ns, origin = excluded.origin, statistics = excluded.statistics",
        (*reference.device, reference.at_ns, reference.origin, text),
    )


def drop_references(tx: Transaction, before_ns: int) -> int:
    """Forget references from before then of releases in whose place their pipeline runs another one now.

    A device that is silent keeps what it is held against: it may only be switched off.
    """
    return tx.change(
        f"DELETE FROM drift_references AS r WHERE at_ns < ? AND NOT {_HAS_SLICES} AND {_RUNS_ANOTHER}",  # noqa: S608  # constants
        (before_ns, 0),
    )


# ---- findings ------------------------------------------------------------------------------------

_KEY = "model, version, scope, subject, statistic, basis"
_FINDING = f"{_KEY}, level, since_ns, proposed, times, newest, looked_ns, figures"


def findings(tx: Transaction) -> dict[FindingKey, Finding]:
    """Return the latest look at every comparison, by key."""
    rows = tx.rows(f"SELECT {_FINDING} FROM drift_findings ORDER BY {_KEY}")  # noqa: S608  # constants of this module
    found = {}
    for row in rows:
        key = FindingKey(*row[:6])
        standing = Standing(row[6], int(row[7]), row[8], int(row[9]), int(row[10]))
        figures = msgspec.json.decode(row[12], type=Comparison | None)
        found[key] = Finding(key, standing, int(row[11]), figures)
    return found


def put_findings(tx: Transaction, found: Iterable[Finding]) -> None:
    """Write looks over those before."""
    for one in found:
        key, standing = one.key, one.standing
        tx.change(
            f"INSERT INTO drift_findings ({_FINDING}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
            f" ON CONFLICT ({_KEY}) DO UPDATE SET level = excluded.level, since_ns = excluded.since_ns,"
            " proposed = excluded.proposed, times = excluded.times, newest = excluded.newest,"
            " looked_ns = excluded.looked_ns, figures = excluded.figures",
            (
                *(key.model, key.version, key.scope, key.subject, key.statistic, key.basis),
                *(standing.level, standing.since_ns, standing.proposed, standing.times, standing.newest),
                *(one.looked_ns, msgspec.json.encode(one.comparison).decode()),
            ),
        )


def drop_findings(tx: Transaction, looked_before_ns: int) -> int:
    """Forget comparisons that are not made any more, such as those of a release that nobody runs."""
    return tx.change("DELETE FROM drift_findings WHERE looked_ns < ?", (looked_before_ns,))


# ---- events, proposals, labels -------------------------------------------------------------------


def note(tx: Transaction, key: FindingKey | Device, kind: str | Level, detail: str, now_ns: int) -> None:
    """Remember that something happened."""
    scope, subject = (key.scope, key.subject) if isinstance(key, FindingKey) else ("device", key.subject)
    tx.change(
        "INSERT INTO drift_events (id, at_ns, model, version, scope, subject, kind, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (uuid.uuid4().hex, now_ns, key.model, key.version, scope, subject, kind, detail),
    )


def events(tx: Transaction, *, since_ns: int = 0, limit: int = 100) -> list[DriftEvent]:
    """Return what happened, the latest first."""
    rows = tx.rows(
        "SELECT id, at_ns, model, version, scope, subject, kind, detail FROM drift_events WHERE at_ns >= ?"
        " ORDER BY at_ns DESC, id LIMIT ?",
        (since_ns, limit),
    )
    return [DriftEvent(*row) for row in rows]


def drop_events(tx: Transaction, before_ns: int) -> int:
    """Forget what happened before then."""
    return tx.change("DELETE FROM drift_events WHERE at_ns < ?", (before_ns,))


def propose(tx: Transaction, model: str, version: str, why: str, now_ns: int) -> Proposal | None:
    """Propose to train a release again; None if there is an open proposal of it already."""
    (found,) = tx.rows(
        "SELECT count(*) FROM drift_proposals WHERE model = ? AND version = ? AND state IN ('open', 'running')",
        (model, version),
    )
    if found[0]:
        return None
    made = Proposal(uuid.uuid4().hex[:12], now_ns, model, version, why, "open", now_ns, "")
    tx.change(
        "INSERT INTO drift_proposals (id, at_ns, model, version, why, state, changed_ns, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (made.id, now_ns, model, version, why, made.state, now_ns, ""),
    )
    return made


def proposals(tx: Transaction, *, limit: int = 100) -> list[Proposal]:
    """Return the proposals, the latest first."""
    rows = tx.rows(
        "SELECT id, at_ns, model, version, why, state, changed_ns, detail FROM drift_proposals"
        " ORDER BY at_ns DESC, id LIMIT ?",
        (limit,),
    )
    return [Proposal(*row) for row in rows]


def settle(tx: Transaction, proposal: str, state: str, detail: str, now_ns: int) -> bool:
    """Give a proposal another state; False if there is none of this id."""
    changed = tx.change(
        "UPDATE drift_proposals SET state = ?, detail = ?, changed_ns = ? WHERE id = ?",
        (state, detail, now_ns, proposal),
    )
    return changed == 1


def claim(tx: Transaction, proposal: str, now_ns: int, stale_ns: int) -> bool:
    """Begin to work on a proposal; False if somebody else does, or it is settled.

    One that is said to be worked on since before `stale_ns` was left by a bridge that was killed.
    """
    changed = tx.change(
        "UPDATE drift_proposals SET state = 'running', detail = '', changed_ns = ?"
        " WHERE id = ? AND (state = 'open' OR (state = 'running' AND changed_ns < ?))",
        (now_ns, proposal, stale_ns),
    )
    return changed == 1


def put_label(tx: Transaction, gateway: str, event_id: str, label: str, now_ns: int) -> None:
    """Write what a person says that an event was, over what was said before."""
    tx.change(
        "INSERT INTO drift_labels (gateway, event_id, label, at_ns) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (gateway, event_id) DO UPDATE SET label = excluded.label, at_ns = excluded.at_ns",
        (gateway, event_id, label, now_ns),
    )


def labels(tx: Transaction) -> dict[tuple[str, str], str]:
    """Return what people have said, by gateway and event."""
    rows = tx.rows("SELECT gateway, event_id, label FROM drift_labels")
    return {(gateway, event_id): label for gateway, event_id, label in rows}
