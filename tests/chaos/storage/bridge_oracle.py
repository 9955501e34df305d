"""What must be in the bridge's store after a crash, and whether it is."""

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from cloud_bridge.errors import BridgeError
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import Intake, StreamKey
from tests.chaos.storage.bridge_victim import EPOCH, arrival, body_of
from tests.chaos.storage.outbox_oracle import Verdict


@dataclass
class Acknowledged:
    """What devices were told up to a moment: a mark lets them delete."""

    rows: dict[StreamKey, set[int]] = field(default_factory=dict)
    marks: dict[StreamKey, int] = field(default_factory=dict)
    failures: int = 0

    def hear(self, mark: str) -> None:
        """Take note of one mark of the victim."""
        kind, *words = mark.split()
        if kind == "failed":
            self.failures += 1
        if kind != "i":
            return
        for gateway, name, first, last, contiguous in zip(*(words[at::5] for at in range(5)), strict=True):
            key = StreamKey(gateway, EPOCH, name)
            self.rows.setdefault(key, set()).update(range(int(first), int(last) + 1))
            self.marks[key] = max(int(contiguous), self.marks.get(key, 0))


def acknowledged_by(marks: Iterable[str]) -> Acknowledged:
    """Add up what was said."""
    found = Acknowledged()
    for mark in marks:
        found.hear(mark)
    return found


def judge(file: Path, said: Acknowledged) -> Verdict:
    """Open the store as the bridge does, compare it with what was acknowledged, and deliver everything again."""
    began = time.monotonic()
    store = SqliteStore(file)
    try:
        store.open()
        open_seconds = time.monotonic() - began
        return _compare(store, said, open_seconds)
    except (BridgeError, sqlite3.DatabaseError) as error:
        return Verdict((f"it cannot be used: {error}",), lost=1, present=0, open_seconds=time.monotonic() - began)
    finally:
        store.close()


def _compare(store: SqliteStore, said: Acknowledged, open_seconds: float) -> Verdict:
    faults: list[str] = []
    lost = 0
    if aside := [path.name for path in store.path.parent.glob("*.damaged-*")]:
        faults.append(f"set aside: {aside}")
    held = read_rows(store.path)
    marks = {stream.key: stream.mark for stream in store.streams()}
    for key, mark in marks.items():
        present = held.get(key, {})
        if behind := [seq for seq in range(1, mark + 1) if seq not in present]:
            faults.append(f"{key}: the mark {mark} is ahead of rows that are not there: {behind[:5]}")
        if wrong := [seq for seq, body in present.items() if body != body_of(key, seq)]:
            faults.append(f"{key}: other bytes in {wrong[:5]}")
    for key, mark in said.marks.items():
        if marks.get(key, 0) < mark:
            faults.append(f"{key}: {mark} was acknowledged, the store is at {marks.get(key, 0)}")
    for key, wanted in said.rows.items():
        missing = wanted - set(held.get(key, {}))
        lost += len(missing)
        if missing:
            faults.append(f"{key}: {len(missing)} committed rows are gone")
    faults.extend(_deliver_again(store, said))
    return Verdict(tuple(faults), lost, sum(len(rows) for rows in held.values()), open_seconds)


def _deliver_again(store: SqliteStore, said: Acknowledged) -> list[str]:
    """What a device sends after such a crash: everything, from its first row on."""
    faults = []
    for key, rows in said.rows.items():
        outcome = store.ingest(Intake(2, (arrival(key, 1, max(rows)),)))
        if outcome.marks[key] < max(rows):
            faults.append(f"{key}: all {max(rows)} came again, the mark stays at {outcome.marks[key]}")
    return faults


def read_rows(file: Path) -> dict[StreamKey, dict[int, bytes]]:
    """Read the rows without the program's own code; a row that is there twice is an error."""
    found: dict[StreamKey, dict[int, bytes]] = {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        for gateway, epoch, name, seq, body in db.execute(
            "SELECT s.gateway, s.epoch, s.class, r.seq, r.body FROM stream_records r JOIN streams s ON s.id = r.stream"
        ):
            rows = found.setdefault(StreamKey(gateway, epoch, name), {})
            assert seq not in rows, f"{name} {seq} is stored twice"
            rows[seq] = body
    return found
