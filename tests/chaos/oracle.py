"""Starts the process that keeps the truth, and compares it with what a bridge has committed."""

import hashlib
import json
import socket
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from hil.loopback.children import Child, RigError
from hil.loopback.rig import eventually
from tests.chaos.oracle_process import digest_of

Key = tuple[str, str, str, int]
"""Gateway, class, epoch, sequence number."""
Revision = tuple[str, str, int]
"""Gateway, event id, revision."""
K = TypeVar("K", Key, Revision)

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the comparison found. Only `acknowledged`, `committed`, `waiting` and `evicted` may be other than zero."""

    acknowledged: int  # records and events that somebody was promised or told
    committed: int  # rows in the bridge's store
    lost: int  # promised, and neither committed, nor evicted by name, nor waiting in the outbox given to `judge`
    altered: int  # committed with other content than was promised
    duplicates: int  # rows beyond the first of a key, or of a revision of an event
    out_of_order: int  # neighbours by sequence number that were produced the other way round
    unexplained_gaps: int  # numbers below the highest one of a stream, not there and not named as evicted
    evicted: int  # numbers that the bridge knows as given up on purpose
    waiting: int = 0  # promised, not committed, and still in the outbox
    evicted_by_class: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[object]] = field(default_factory=dict)

    @property
    def faults(self) -> dict[str, int]:
        """What must be zero and is not."""
        names = ("lost", "altered", "duplicates", "out_of_order", "unexplained_gaps")
        return {name: count for name in names if (count := getattr(self, name))}

    def check(self, *, evictions: bool = False, least: int = 1) -> None:
        """Hold the store to its promise.

        Args:
            evictions: whether records may have been given up by name; `critical` ones never.
            least: how many promises there must be at least, so that an idle experiment does not pass.

        Raises:
            AssertionError: with counts and examples.
        """
        faults = dict(self.faults)
        if not evictions and self.evicted:
            faults["evicted"] = self.evicted
        elif self.evicted_by_class.get("critical"):
            faults["evicted critical"] = self.evicted_by_class["critical"]
        if self.acknowledged < least:
            raise AssertionError(f"only {self.acknowledged} promises were made, at least {least} are needed\n{self}")
        if faults:
            found = "\n".join(f"  {name}: {list(rows)}" for name, rows in self.examples.items())
            raise AssertionError(f"{faults} of {self.acknowledged} promises\nfor example\n{found}\n{self}")


class Oracle:
    """The process beside the system under test."""

    def __init__(self, directory: Path, *, broker: str = "", prefix: Sequence[str] = (), root: str = "sluice") -> None:
        """Prepare it.

        Args:
            directory: where the truth is kept; nothing that is under test is told of it.
            broker: the local broker whose events are listened to, `mqtt://host:port`; "" for none.
            prefix: put before the command, as `nsenter --net=…`.
            root: of the topics.
        """
        directory.mkdir(parents=True, mode=0o700)
        self.directory = directory
        self.socket = directory.parent / "oracle.sock"
        self._acknowledged = directory / "acknowledged.txt"
        self._told = directory / "told.txt"
        command = [*prefix, sys.executable, "-m", "tests.chaos.oracle_process", "--directory", str(directory)]
        command += ["--socket", str(self.socket), "--root", root, *(("--broker", broker) if broker else ())]
        self.process = Child("oracle", command, directory / "oracle.log")

    def start(self) -> None:
        """Start it and wait until producers may connect."""
        self.process.start()
        self.process.wait_until(self.socket.exists, "the oracle listens")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()

    def counts(self) -> tuple[int, int]:
        """Return how many records were promised and how many events told, when nobody has anything left to say."""
        sealed = self._ask()
        return sealed["acknowledged"]["lines"], sealed["told"]["lines"]

    def judge(self, bridge: Path, outbox: Path | None = None) -> Verdict:
        """Compare the promises with the store of a bridge.

        Args:
            bridge: its SQLite file; it may be in use.
            outbox: what still waits there counts as kept; for experiments that end before all is delivered.

        Raises:
            RigError: the oracle has died, or its files are not what it wrote.
        """
        self._check_seal()
        truth = _Truth.read(self._acknowledged, self._told)
        with closing(sqlite3.connect(f"file:{bridge}?mode=ro", uri=True, timeout=10.0)) as db:
            db.execute("PRAGMA query_only = ON")
            db.execute("BEGIN")  # one view of it, whatever is written meanwhile
            return _compare(truth, _rows(db), _evictions(db), _waiting(outbox) if outbox is not None else frozenset())

    def _check_seal(self) -> None:
        sealed = self._ask()
        for name, file in (("acknowledged", self._acknowledged), ("told", self._told)):
            # Events may still be coming in: the file may have grown, but not changed.
            lines = file.read_bytes().splitlines(keepends=True)[: sealed[name]["lines"]]
            if hashlib.sha256(b"".join(lines)).hexdigest() != sealed[name]["sha256"]:
                raise RigError(f"{file} is not what the oracle wrote: something else has written it")

    def _ask(self) -> dict[str, Any]:
        if not self.process.running:
            raise RigError(f"the oracle has ended: {self.process.tail()}")
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as answer:
            sock.settimeout(30.0)
            sock.connect(str(self.socket))
            sock.sendall(b"?\n")
            content: dict[str, Any] = json.loads(answer.readline())
        return content

    def wait_until_quiet(self, seconds: float = 0.3, timeout_seconds: float = 10.0) -> None:
        """Wait until no more events have come in for a while."""
        seen = (-1, time.monotonic())

        def quiet() -> bool:
            nonlocal seen
            told = self.counts()[1]
            if told != seen[0]:
                seen = (told, time.monotonic())
            return time.monotonic() - seen[1] >= seconds

        eventually(quiet, "the site is told no more", timeout_seconds)


@dataclass(frozen=True, slots=True)
class _Truth:
    """What the witnesses wrote down."""

    records: Mapping[Key, str]
    events: Mapping[Revision, str]
    broken: Sequence[object]  # promises that contradict each other

    @classmethod
    def read(cls, acknowledged: Path, told: Path) -> "_Truth":
        records: dict[Key, str] = {}
        broken: list[object] = []
        for line in acknowledged.read_text().splitlines():
            gateway, record_class, epoch, seq, digest = line.split()
            key = (gateway, record_class, epoch, int(seq))
            if records.setdefault(key, digest) != digest:
                broken.append(key)
        events: dict[Revision, str] = {}
        for line in told.read_text().splitlines():
            gateway, event_id, revision, digest = line.split()
            if events.setdefault((gateway, event_id, int(revision)), digest) != digest:
                broken.append((gateway, event_id, int(revision)))
        return cls(records, events, broken)


class _Brief(msgspec.Struct):
    """The part of an event that tells it from others."""

    event_id: str
    revision: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    key: Key
    digest: str
    event: _Brief | None


def _rows(db: sqlite3.Connection) -> Iterator[_Row]:
    decoder = msgspec.json.Decoder(_Brief)
    rows = db.execute(
        "SELECT gateway, class, epoch, seq, kind, body, blob FROM records ORDER BY gateway, epoch, class, seq"
    )
    for gateway, record_class, epoch, seq, kind, body, blob in rows:
        event = decoder.decode(body) if kind == "event" else None
        yield _Row((gateway, record_class, epoch, seq), digest_of(body, blob), event)


def _evictions(db: sqlite3.Connection) -> list[tuple[str, str, str, int, int]]:
    return db.execute("SELECT gateway, class, epoch, first, last FROM gaps WHERE source = 'eviction'").fetchall()


def _waiting(outbox: Path) -> frozenset[tuple[str | int, ...]]:
    """Return what an outbox holds: class, epoch and number of each row, and id and revision of each event."""
    decoder = msgspec.json.Decoder(_Brief)
    held: set[tuple[str | int, ...]] = set()
    with closing(sqlite3.connect(f"file:{outbox}?mode=ro", uri=True, timeout=10.0)) as db:
        db.execute("PRAGMA query_only = ON")
        db.execute("BEGIN")
        (epoch,) = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'records!_%' ESCAPE '!'")
        ]
        for table in tables:
            for seq, kind, body in db.execute(f"SELECT seq, kind, body FROM {table}"):
                held.add((table.removeprefix("records_"), str(epoch), seq))
                if kind == "event":
                    event = decoder.decode(body)
                    held.add((event.event_id, event.revision))
    return frozenset(held)


class _Findings:
    """Counts faults, and keeps a few of each as examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[object]] = {}

    def add(self, fault: str, example: object) -> None:
        """Take note of a fault."""
        self.counts[fault] += 1
        examples = self.examples.setdefault(fault, [])
        if len(examples) < EXAMPLES:
            examples.append(example)


@dataclass(slots=True)
class _Store:
    """What the bridge has committed, by key."""

    rows: int = 0
    records: dict[Key, str] = field(default_factory=dict)
    events: dict[Revision, str] = field(default_factory=dict)
    streams: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)

    def take(self, rows: Iterator[_Row], findings: _Findings) -> None:
        """Read all rows, in the order of their keys; find what is there twice, or in the wrong order."""
        before: _Row | None = None
        for row in rows:
            self.rows += 1
            if row.key in self.records:
                findings.add("duplicates", row.key)
            self.records[row.key] = row.digest
            self.streams.setdefault(row.key[:3], []).append(row.key[3])
            if row.event is not None:
                revision = (row.key[0], row.event.event_id, row.event.revision)
                if revision in self.events:
                    findings.add("duplicates", revision)
                self.events[revision] = row.digest
                if before is not None and not _in_order(before, row):
                    findings.add("out_of_order", (before.key, row.key))
            before = row

    def gaps(self, given_up: Set[Key], findings: _Findings) -> None:
        """Find the numbers that are missing without a reason."""
        for stream, numbers in self.streams.items():
            for seq in sorted(set(range(1, max(numbers) + 1)).difference(numbers)):
                if (*stream, seq) not in given_up:
                    findings.add("unexplained_gaps", (*stream, seq))


def _compare(
    truth: _Truth,
    rows: Iterator[_Row],
    evictions: Sequence[tuple[str, str, str, int, int]],
    waiting: Set[tuple[str | int, ...]],
) -> Verdict:
    findings, store = _Findings(), _Store()
    for contradiction in truth.broken:
        findings.add("altered", contradiction)
    store.take(rows, findings)
    given_up = {
        (gateway, record_class, epoch, seq)
        for gateway, record_class, epoch, first, last in evictions
        for seq in range(first, last + 1)
    }
    store.gaps(given_up, findings)
    kept = _check(truth.records, store.records, given_up, waiting, findings)
    kept += _check(truth.events, store.events, set(), waiting, findings)
    counts = findings.counts
    return Verdict(
        acknowledged=len(truth.records) + len(truth.events),
        committed=store.rows,
        lost=counts["lost"],
        altered=counts["altered"],
        duplicates=counts["duplicates"],
        out_of_order=counts["out_of_order"],
        unexplained_gaps=counts["unexplained_gaps"],
        evicted=len(given_up),
        waiting=kept,
        evicted_by_class=dict(Counter(key[1] for key in given_up)),
        examples=findings.examples,
    )


def _check(
    promised: Mapping[K, str],
    committed: Mapping[K, str],
    given_up: Set[Key],
    waiting: Set[tuple[str | int, ...]],
    findings: _Findings,
) -> int:
    """Find promises that were not kept; return how many are still to be kept by the outbox."""
    kept = 0
    for key, digest in promised.items():
        if key in committed:
            if committed[key] != digest:
                findings.add("altered", key)
        elif key[1:] in waiting:
            kept += 1
        elif key not in given_up:
            findings.add("lost", key)
    return kept


def _in_order(before: _Row, row: _Row) -> bool:
    """Tell whether two neighbours of one stream were produced in the order of their numbers.

    Event ids begin with the time or the count of their making; the revisions of one event only rise.
    """
    if before.event is None or row.event is None or before.key[:3] != row.key[:3]:
        return True
    if before.event.event_id == row.event.event_id:
        return before.event.revision < row.event.revision
    is_counted = before.event.event_id.startswith(COUNTED) and row.event.event_id.startswith(COUNTED)
    return not is_counted or before.event.event_id < row.event.event_id


COUNTED = "n"
"""How the event ids of `tests.chaos.producer` begin; they rise in the order of production."""
