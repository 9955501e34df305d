"""Turns rows of the outbox into the payload of `records/<class>`. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gateway.values import Stored, StoredRun
from gateway.wire.batch import Packed, pack
from gateway.wire.messages import Record, RecordBatch


@dataclass(frozen=True, slots=True)
class Load:
    """The first rows of a run, packed. `packed` is None if even the first does not fit alone."""

    epoch: str
    first: int
    last: int
    records: int
    packed: Packed | None


def load_of(run: StoredRun, limit_bytes: int) -> Load:
    """Pack as many rows of a run as fit into a payload of `limit_bytes`; the run holds at least one."""
    rows = run.rows
    while True:
        packed = _pack(run, rows)
        if len(packed.payload) <= limit_bytes:
            return Load(run.epoch, rows[0].seq, rows[-1].seq, len(rows), packed)
        if len(rows) == 1:
            return Load(run.epoch, rows[0].seq, rows[0].seq, 1, None)
        # Rows differ in size, so the share that fits is a guess; half at most, so that this ends soon.
        share = limit_bytes / len(packed.payload)
        rows = rows[: max(1, int(len(rows) * min(share, 0.5)))]


def _pack(run: StoredRun, rows: Sequence[Stored]) -> Packed:
    records = [
        Record(
            seq=row.seq,
            kind=row.kind,
            recorded_at_ns=row.recorded_at_ns,
            body=msgspec.Raw(row.body),
            blob_bytes=len(row.blob),
        )
        for row in rows
    ]
    # Evictions may have raised the base above rows that were already read.
    base = min(run.base, rows[0].seq)
    return pack(RecordBatch(epoch=run.epoch, base=base, records=records), [row.blob for row in rows])
