"""What came under a number that the store has already: the same record again, or another one.

A device that was cloned, or whose disk was put back from a copy, gives numbers twice. The spans alone would take the
second record for a duplicate and let it go without a word; here it is compared with what is stored, and kept as a
dead letter. Only records that came again are read, so a store that hears everything once pays nothing.
"""

# ruff: noqa: S608  # the texts are put together from constants; values travel as parameters only

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from cloud_bridge.store.keys import Keys
from cloud_bridge.store.ledger import runs_of
from cloud_bridge.values import DeadLetter, Row, StreamKey
from gateway.wire.batch import pack
from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import Record, RecordBatch, Withheld, decode, record_digest

CONFLICT: Final = "conflict"
WITHHELD: Final = "withheld"

_MAX_KEPT_BYTES: Final = 1024 * 1024


class Query(Protocol):
    """What of a transaction is needed here."""

    @property
    def keys(self) -> Keys:
        """How this database finds records by their numbers."""
        ...

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """A record as it is stored, as far as it matters here."""

    kind: str
    body: bytes
    blob: bytes


@dataclass(frozen=True, slots=True)
class Sorted:
    """Records that came again, told apart; those that are simply the same are in neither."""

    others: tuple[Row, ...] = ()
    in_place_of_withheld: tuple[Row, ...] = ()


def sort_known(query: Query, stream: int, rows: Sequence[Row]) -> Sorted:
    """Compare records with those stored under their numbers. What retention has removed cannot be compared."""
    others: list[Row] = []
    arrived: list[Row] = []
    stored: dict[int, Known] = {}
    for first, last in runs_of(sorted({row.seq for row in rows})):
        found = query.rows(
            f"SELECT r.seq, r.kind, r.body, r.blob FROM stream_records r WHERE {query.keys.some}",
            query.keys.range(stream, first, last),
        )
        stored.update({seq: Known(kind, bytes(body), bytes(blob or b"")) for seq, kind, body, blob in found})
    for row in rows:
        known = stored.get(row.seq)
        if known is None or _is_same(row, known) or row.kind == WITHHELD != known.kind:
            continue
        if known.kind == WITHHELD and _is_announced(row, known):
            arrived.append(row)
        else:
            others.append(row)
    return Sorted(tuple(others), tuple(arrived))


def conflict_of(key: StreamKey, row: Row) -> DeadLetter:
    """Make the dead letter of a record whose number belongs to another; its payload is a batch with it alone."""
    record = Record(
        seq=row.seq,
        kind=row.kind,
        recorded_at_ns=max(row.recorded_at_ns, 0),
        body=msgspec.Raw(row.body),
        blob_bytes=len(row.blob),
    )
    batch = RecordBatch(epoch=key.epoch, base=row.seq, records=[record])
    payload = pack(batch, [row.blob], compress_from=_MAX_KEPT_BYTES).payload
    return DeadLetter(
        reason=CONFLICT,
        topic=f"{key.gateway}/records/{key.record_class}",
        detail=f"number {row.seq} belongs to another record: the gateway was cloned, or put back from a copy",
        payload=payload[:_MAX_KEPT_BYTES],
        payload_bytes=len(payload),
        key=key,
        seq=row.seq,
    )


def _is_same(row: Row, known: Known) -> bool:
    if row.kind != known.kind or row.blob != known.blob:
        return False
    if row.body == known.body:
        return True
    try:  # a file of records may have been through a program that writes JSON in its own way
        return bool(msgspec.json.decode(row.body) == msgspec.json.decode(known.body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _is_announced(row: Row, known: Known) -> bool:
    try:
        withheld = decode(known.body, Withheld)
    except MalformedMessageError:
        return False
    return withheld.digest == record_digest(row.kind, row.body, row.blob)
