"""Turns rows of the outbox into the payload of `records/<class>`. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from gateway.values import Stored, StoredRun
from gateway.wire.batch import WORTH_COMPRESSING, Packed, pack, payload_digest
from gateway.wire.messages import INT64_MAX, Kept, Record, RecordBatch, Withheld, encode, record_digest

Reason = Literal["unreadable", "too-large"]

_DETAIL_CHARACTERS: Final = 80
_json: Final = msgspec.json.Decoder(msgspec.Raw)


@dataclass(frozen=True, slots=True)
class Load:
    """The first rows of a run, packed. `packed` is None if even the first does not fit alone."""

    epoch: str
    first: int
    last: int
    records: int
    packed: Packed | None
    digest: str = ""  # of the payload


def load_of(run: StoredRun, limit_bytes: int, kept: Sequence[Kept] = ()) -> Load:
    """Pack as many rows of a run as fit into a payload of `limit_bytes`; the run holds at least one.

    `kept` is mentioned where there is room for it.
    """
    rows = run.rows
    while True:
        packed = _pack(run, rows, kept)
        if len(rows) == 1 and len(packed.payload) > limit_bytes:
            packed = _pack(run, rows, compress_from=0)  # a little may be what is missing
        if len(packed.payload) <= limit_bytes:
            return Load(run.epoch, rows[0].seq, rows[-1].seq, len(rows), packed, payload_digest(packed.payload))
        if len(rows) == 1:
            return Load(run.epoch, rows[0].seq, rows[0].seq, 1, None)
        # Rows differ in size, so the share that fits is a guess; half at most, so that this ends soon.
        share = limit_bytes / len(packed.payload)
        rows = rows[: max(1, int(len(rows) * min(share, 0.5)))]


def unreadable(row: Stored) -> str | None:
    """Say what makes a row impossible to send as it is, or None. One such row would spoil the JSON of its batch."""
    try:
        _json.decode(row.body)
        if not row.body.isascii():
            row.body.decode("utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"body: {error}"[:_DETAIL_CHARACTERS]
    if not 0 <= row.recorded_at_ns <= INT64_MAX:
        return "time: not a time"
    return None


def stand_in(row: Stored, reason: Reason, detail: str = "") -> Stored:
    """Make what travels in the place of a row, under its number. The same row always makes the same."""
    body = Withheld(
        kind=row.kind[:_DETAIL_CHARACTERS],
        reason=reason,
        size_bytes=len(row.body) + len(row.blob),
        digest=record_digest(row.kind, row.body, row.blob),
        detail=detail,
    )
    at_ns = row.recorded_at_ns if 0 <= row.recorded_at_ns <= INT64_MAX else 0
    return Stored(row.seq, "withheld", at_ns, encode(body))


def _pack(
    run: StoredRun, rows: Sequence[Stored], kept: Sequence[Kept] = (), *, compress_from: int = WORTH_COMPRESSING
) -> Packed:
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
    batch = RecordBatch(epoch=run.epoch, base=base, records=records, kept=list(kept))
    return pack(batch, [row.blob for row in rows], compress_from=compress_from)
