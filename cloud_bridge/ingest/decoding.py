"""What messages mean. Pure: messages in, an intake out, and nothing is ever raised for what a sender did."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeGuard

from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.values import Arrival, DeadLetter, Intake, Row, StreamKey
from gateway.wire.batch import unpack
from gateway.wire.errors import MalformedMessageError, MalformedTopicError
from gateway.wire.messages import (
    BODIES,
    CLASSES,
    Availability,
    Event,
    Eviction,
    Evidence,
    Kept,
    Measure,
    Message,
    Notice,
    PipelineStatus,
    Record,
    Withheld,
    decode,
)
from gateway.wire.topics import Address, address_of

MAX_KEPT_BYTES: Final = 1024 * 1024
"""A dead letter keeps so much of its payload."""

MAX_CUSTODY_BYTES: Final = 16 * 1024 * 1024
"""A message of records is kept whole up to here: its sender may then let the records go."""

MAX_RECORDS: Final = 10_000
"""In one message; no device can be configured to put more into a batch."""

_MOST_RECORDS: Final = 20_000
"""In one transaction: numbers that do not stand in a row cost the store far more than their bytes."""

QUARANTINED: Final = "store_quarantined"
"""Code of the notice that a device has put its store aside."""

MAX_NUMBER: Final = 2**53 - 1
"""The highest sequence number and time that every JSON reader and every database can hold."""

_MAX_KIND: Final = 64
_MAX_NAME: Final = 512


@dataclass(slots=True)
class _Gathered:
    arrivals: list[Arrival] = field(default_factory=list)
    availability: list[tuple[str, Availability]] = field(default_factory=list)
    statuses: list[tuple[str, PipelineStatus]] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def intake(self, received_at_ns: int) -> Intake:
        return Intake(
            received_at_ns,
            tuple(self.arrivals),
            tuple(self.availability),
            tuple(self.statuses),
            tuple(self.dead_letters),
            frozenset(self.seen),
        )

    def size(self, arrivals: int, letters: int) -> tuple[int, int]:
        """Return how many records and bytes there are beyond so many arrivals and dead letters."""
        rows = [row for arrival in self.arrivals[arrivals:] for row in arrival.rows]
        letter_bytes = sum(len(letter.payload) for letter in self.dead_letters[letters:])
        return len(rows), sum(len(row.body) + len(row.blob) for row in rows) + letter_bytes


def intake_of(messages: Iterable[Incoming], *, root: str, received_at_ns: int) -> Intake:
    """Decode messages, in order. What cannot be used becomes a dead letter."""
    gathered = _Gathered()
    for message in messages:
        _take(message, root, gathered)
    return gathered.intake(received_at_ns)


def intakes_of(
    messages: Iterable[Incoming],
    *,
    root: str,
    received_at_ns: int,
    most_bytes: int,
    most_records: int = _MOST_RECORDS,
) -> Iterator[tuple[list[Incoming], Intake]]:
    """Decode messages, in order, and return them in parts of about so much when unfolded.

    A kilobyte may unfold to a mebibyte: what a part takes in memory, and its transaction in time, must not depend on
    what senders have packed. Each part is decoded when it is asked for, and ends with the message that fills it.
    """
    taken: list[Incoming] = []
    gathered, records, size_bytes = _Gathered(), 0, 0
    for message in messages:
        arrivals, letters = len(gathered.arrivals), len(gathered.dead_letters)
        _take(message, root, gathered)
        taken.append(message)
        more_records, more_bytes = gathered.size(arrivals, letters)
        records, size_bytes = records + more_records, size_bytes + more_bytes
        if records >= most_records or size_bytes >= most_bytes:
            yield taken, gathered.intake(received_at_ns)
            taken = []
            gathered, records, size_bytes = _Gathered(), 0, 0
    if taken:
        yield taken, gathered.intake(received_at_ns)


def refused(message: Incoming, reason: str, detail: str, sender: tuple[str, str] | None = None) -> DeadLetter:
    """Make a dead letter of a whole message; with `sender`, of records: as much as may be is kept then."""
    topic = message.topic
    # NUL is no text for PostgreSQL, and is not allowed in topics anyway (MQTT 5 §1.5.4).
    text = topic.decode("utf-8", "backslashreplace") if isinstance(topic, bytes) else topic
    return DeadLetter(
        reason=reason,
        topic=text.replace("\0", "\\x00"),
        detail=detail.replace("\0", "\\x00")[:500],
        payload=message.payload[: MAX_CUSTODY_BYTES if sender else MAX_KEPT_BYTES],
        payload_bytes=len(message.payload),
        sender=sender,
        retained=message.retained,
    )


def sender_of(message: Incoming, root: str) -> tuple[str, str] | None:
    """Return the gateway and the class of a message of records; None if it is something else."""
    try:
        address = address_of(message.topic, root)
    except MalformedTopicError:
        return None
    return (address.gateway, address.name) if address.channel == "records" else None


def _take(message: Incoming, root: str, gathered: _Gathered) -> None:
    try:
        address = address_of(message.topic, root)
    except MalformedTopicError as error:
        gathered.dead_letters.append(refused(message, "bad-topic", str(error)))
        return
    try:
        match address.channel:
            case "records":
                _take_records(message, address, gathered)
            case "availability" if message.payload:  # an empty one clears what was retained
                said = decode(message.payload, Availability)
                _check_text(said.at, said.version)
                gathered.availability.append((address.gateway, said))
            case "status" if message.payload:
                status = decode(message.payload, PipelineStatus)
                _check_text(status.pipeline)
                gathered.statuses.append((address.gateway, status))
            case "availability" | "status":
                return
            case _:
                gathered.dead_letters.append(refused(message, "bad-topic", f"nothing is expected on {address.channel}"))
                return
    except MalformedMessageError as error:
        gathered.dead_letters.append(refused(message, "bad-payload", str(error), sender_of(message, root)))
        return
    if not message.retained:
        gathered.seen.add(address.gateway)


def _take_records(message: Incoming, address: Address, gathered: _Gathered) -> None:
    if address.name not in CLASSES:
        detail = f"class {address.name!r} is none of {', '.join(CLASSES)}"
        sender = (address.gateway, address.name)
        gathered.dead_letters.append(refused(message, "unknown-class", detail, sender))
        return
    unpacked = unpack(message.payload)
    batch = unpacked.batch
    if len(batch.records) > MAX_RECORDS:
        raise MalformedMessageError(f"RecordBatch: {len(batch.records)} records are more than {MAX_RECORDS}")
    key = StreamKey(address.gateway, batch.epoch, address.name)
    arrival, notes = arrival_of(key, batch.base, batch.records, unpacked.blobs, str(message.topic))
    if batch.kept:
        arrival = replace(arrival, kept=_checked_kept(batch.kept))
    gathered.arrivals.append(arrival)
    gathered.dead_letters.extend(notes)


def _checked_kept(kept: Sequence[Kept]) -> tuple[Kept, ...]:
    for one in kept:
        if not one.first <= one.last <= MAX_NUMBER:
            raise MalformedMessageError(f"RecordBatch: {one.first} to {one.last} is no range")
    return tuple(kept)


def arrival_of(
    key: StreamKey, base: int, records: Sequence[Record], blobs: Sequence[bytes], topic: str, *, reindex: bool = False
) -> tuple[Arrival, list[DeadLetter]]:
    """Make rows of records in rising order; bodies that are not what their kind says are kept, and noted.

    Raises:
        MalformedMessageError: a number is beyond what can be stored.
    """
    if records[-1].seq > MAX_NUMBER:
        raise MalformedMessageError(f"RecordBatch: sequence number {records[-1].seq} is above {MAX_NUMBER}")
    rows: list[Row] = []
    notes: list[DeadLetter] = []
    for record, blob in zip(records, blobs or itertools.repeat(b""), strict=False):
        if abs(record.recorded_at_ns) > 2**63 - 1:
            raise MalformedMessageError(f"RecordBatch: recorded_at_ns of record {record.seq} is beyond 64 bits")
        body = bytes(record.body)
        kind = record.kind
        known = BODIES.get(kind)
        message: Message | None = None
        if known is None:
            kind = kind[:_MAX_KIND].replace("\0", "\ufffd")
            notes.append(_note("unknown-kind", f"kind {kind!r}", key, record.seq, body=body, topic=topic))
        else:
            try:
                message = decode(body, known)
                _check_body(message)
            except MalformedMessageError as error:
                message = None
                notes.append(_note("bad-body", str(error), key, record.seq, body=body, topic=topic))
        if isinstance(message, Withheld):
            detail = f"{message.reason}: {message.kind} of {message.size_bytes} bytes is kept on the gateway"
            notes.append(_note("withheld", detail, key, record.seq, body=body, topic=topic))
        pipeline = message.pipeline if isinstance(message, (Event, Measure, Evidence)) else None
        index = message if isinstance(message, (Event, Evidence, Eviction)) or _names_a_store(message) else None
        rows.append(Row(record.seq, kind, pipeline, record.recorded_at_ns, body, blob, index))
    return Arrival(key, base, tuple(rows), reindex), notes


def _note(reason: str, detail: str, key: StreamKey, seq: int, *, body: bytes, topic: str) -> DeadLetter:
    detail = detail.replace("\0", "\\x00")[:500]
    return DeadLetter(reason, topic, detail, body[:MAX_KEPT_BYTES], len(body), key, seq)


def _check_body(message: Message) -> None:
    """Check what the types cannot: that the columns made from a body can hold it."""
    match message:
        case Event():
            _check_text(message.event_id, message.pipeline, message.label)
            if max(abs(message.captured_at_ns), abs(message.revision)) > 2**63 - 1:
                raise MalformedMessageError("Event: a number is beyond 64 bits")
        case Evidence():
            _check_text(message.evidence_id, message.pipeline, message.content_type)
        case Measure():
            _check_text(message.pipeline)
        case Withheld():
            _check_text(message.kind, message.digest, message.detail)
        case Eviction(first_seq=first, last_seq=last) if not first <= last <= MAX_NUMBER:
            raise MalformedMessageError(f"Eviction: {first} to {last} is no range")
        case Notice(missing=missing):
            for record_class, (first, last) in missing.items():
                if not first <= last <= MAX_NUMBER:
                    raise MalformedMessageError(f"Notice: {first} to {last} of {record_class} is no range")
        case _:
            pass


def _names_a_store(message: Message | None) -> TypeGuard[Notice]:
    return isinstance(message, Notice) and message.code == QUARANTINED and message.epoch is not None


def _check_text(*texts: str) -> None:
    # In bytes: two names stand in one index, and PostgreSQL takes 2704 bytes there.
    for text in texts:
        if len(text) > _MAX_NAME or "\0" in text or not (text.isascii() or len(text.encode()) <= _MAX_NAME):
            raise MalformedMessageError(f"a name has a NUL character, or is longer than {_MAX_NAME} bytes")
