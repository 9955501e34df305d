"""An outbox in memory, for the uplink: rows by class, a base, and failures on demand."""

import json
import threading
from collections.abc import Iterable, Mapping

from gateway.errors import OutboxError
from gateway.values import Stored, StoredRun
from gateway.wire.messages import CLASSES, RecordClass


class MemoryStore:
    """Knobs: `fail` makes every call raise; `away` makes it answer as if it were being opened."""

    def __init__(self, epoch: str = "0123456789abcdef") -> None:
        self.epoch = epoch
        self.fail = False
        self.reads = 0
        self.acknowledged: list[tuple[RecordClass, str, int]] = []
        self.keeps = True  # False: nothing can be set aside
        self.refusals = 0
        self.follows = False  # True: a mark that is ahead makes it number all its rows again above
        self.ahead: list[tuple[RecordClass, str, int]] = []
        self.kept: dict[tuple[RecordClass, int], tuple[str, Stored]] = {}
        self._lock = threading.Lock()
        self._rows: dict[RecordClass, dict[int, Stored]] = {name: {} for name in CLASSES}
        self._next: dict[RecordClass, int] = dict.fromkeys(CLASSES, 1)
        self._base: dict[RecordClass, int] = dict.fromkeys(CLASSES, 1)

    def begin_anew(self, epoch: str) -> None:
        """As after a damaged file: empty, under another epoch."""
        with self._lock:
            self.epoch = epoch
            for name in CLASSES:
                self._rows[name].clear()
                self._next[name] = self._base[name] = 1

    def put(self, name: RecordClass, count: int = 1, *, blob: bytes = b"", body: bytes | None = None) -> list[int]:
        """Commit rows; return their sequence numbers."""
        with self._lock:
            seqs = list(range(self._next[name], self._next[name] + count))
            for seq in seqs:
                text = body if body is not None else json.dumps({"n": seq, "class": name}).encode()
                self._rows[name][seq] = Stored(seq, "event", 1_700_000_000_000_000_000 + seq, text, blob)
            self._next[name] += count
            return seqs

    def evict(self, name: RecordClass, seqs: Iterable[int]) -> None:
        """Give rows up."""
        with self._lock:
            for seq in seqs:
                self._rows[name].pop(seq, None)
                self._base[name] = max(self._base[name], seq + 1)

    def jump(self, name: RecordClass, count: int) -> None:
        """Leave numbers out."""
        with self._lock:
            self._next[name] += count

    def left(self, name: RecordClass) -> int:
        with self._lock:
            return len(self._rows[name])

    @property
    def empty(self) -> bool:
        return not any(self.left(name) for name in CLASSES)

    # ---- what the uplink calls -----------------------------------------------------------------------

    def read(self, record_class: RecordClass, after_seq: int, max_records: int, max_bytes: int) -> StoredRun | None:
        self._check()
        self.reads += 1
        with self._lock:
            held = self._rows[record_class]
            rows: list[Stored] = []
            size = 0
            seq = max(after_seq + 1, self._base[record_class])
            while seq < self._next[record_class] and len(rows) < max_records:
                row = held.get(seq)
                seq += 1
                if row is None:
                    continue
                size += len(row.body) + len(row.blob)
                if rows and size > max_bytes:
                    break
                rows.append(row)
            if not rows:
                return None
            return StoredRun(record_class, self.epoch, self._base[record_class], tuple(rows))

    def set_aside(self, record_class: RecordClass, epoch: str, row: Stored, reason: str, gateway: str) -> None:
        self._check()
        if not self.keeps:
            self.refusals += 1
            raise OutboxError("no room to set it aside")
        self.kept[record_class, row.seq] = (reason, row)

    def aside(self, record_class: RecordClass, epoch: str) -> frozenset[int]:
        return frozenset(n for (name, n), (why, _) in self.kept.items() if name == record_class and why == "too-large")

    def acknowledge(self, record_class: RecordClass, epoch: str, mark: int) -> int:
        self._check()
        with self._lock:
            self.acknowledged.append((record_class, epoch, mark))
            if epoch != self.epoch:
                return 0
            held = self._rows[record_class]
            gone = [seq for seq in range(self._base[record_class], mark + 1) if held.pop(seq, None) is not None]
            self._base[record_class] = max(self._base[record_class], mark + 1)
            return len(gone)

    def follow(self, record_class: RecordClass, epoch: str, mark: int) -> bool:
        self._check()
        with self._lock:
            self.ahead.append((record_class, epoch, mark))
            if not self.follows:
                return False
            moved = [self._rows[record_class].pop(seq) for seq in sorted(self._rows[record_class])]
            self._next[record_class] = max(self._next[record_class], mark + 1)
            for row in moved:
                seq = self._next[record_class]
                self._rows[record_class][seq] = Stored(seq, row.kind, row.recorded_at_ns, row.body, row.blob)
                self._next[record_class] += 1
            return True

    def heads(self) -> Mapping[RecordClass, tuple[int, int]]:
        self._check()
        with self._lock:
            return {name: (min(rows), max(rows)) for name, rows in self._rows.items() if rows}

    def _check(self) -> None:
        if self.fail:
            raise OutboxError("the disk does not answer")
