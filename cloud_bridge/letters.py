"""Dead letters given another try, e.g. after an upgrade that understands them."""

import hashlib
from dataclasses import dataclass

import msgspec

from cloud_bridge.ingest.decoding import arrival_of, intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.store.base import Store
from cloud_bridge.store.collisions import CONFLICT
from cloud_bridge.values import Intake, StoredLetter, StreamKey
from gateway.wire.batch import unpack
from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import Record
from gateway.wire.plain import so_many


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one dead letter."""

    id: int
    settled: bool
    detail: str


def replay(store: Store, letter_id: int, *, root: str, received_at_ns: int) -> Replayed:
    """Decode a dead letter again; if it can be used now, write it and remove the letter, in one transaction.

    Raises:
        StoreError: nothing was changed.
    """
    stored = store.dead_letter(letter_id)
    if stored is None:
        return Replayed(letter_id, settled=False, detail="there is no such dead letter")
    letter = stored.letter
    if len(letter.payload) < letter.payload_bytes:
        return Replayed(letter_id, settled=False, detail="only the first part of its payload was kept")
    try:
        intake = _intake(store, stored, root, received_at_ns)
    except (MalformedMessageError, msgspec.DecodeError) as error:
        return Replayed(letter_id, settled=False, detail=str(error))
    # A batch of which some records are noted is taken as it would have been live, with its notes: the device let it go.
    if intake.dead_letters and (letter.key is not None or not intake.arrivals):
        return Replayed(letter_id, settled=False, detail=intake.dead_letters[0].detail)
    outcome = store.settle(letter_id, intake)
    return Replayed(
        letter_id, settled=True, detail=f"{so_many(outcome.inserted, 'record')} new, {outcome.duplicates} known"
    )


def discard(store: Store, letter_id: int) -> Replayed:
    """Remove a dead letter unused.

    Raises:
        StoreError: nothing was changed.
    """
    if store.dead_letter(letter_id) is None:
        return Replayed(letter_id, settled=False, detail="there is no such dead letter")
    store.settle(letter_id)
    return Replayed(letter_id, settled=True, detail="discarded")


def _intake(store: Store, stored: StoredLetter, root: str, received_at_ns: int) -> Intake:
    letter = stored.letter
    if letter.key is None:
        message = Incoming(letter.topic, letter.payload, 0, 0, 0, 0, retained=True)
        return intake_of([message], root=root, received_at_ns=received_at_ns)
    if letter.reason == CONFLICT:
        return _as_stream_of_its_own(letter.key, letter.payload, letter.topic, received_at_ns)
    # The record is in the store already; only what is kept from its body is missing.
    record = store.record(letter.key, letter.seq or 0)
    if record is None:
        return Intake(received_at_ns)
    again = Record(
        seq=record.seq, kind=record.kind, recorded_at_ns=record.recorded_at_ns, body=msgspec.Raw(record.body)
    )
    arrival, notes = arrival_of(letter.key, 1, [again], [], letter.topic, reindex=True)
    return Intake(received_at_ns, (arrival,), dead_letters=tuple(notes))


def _as_stream_of_its_own(key: StreamKey, payload: bytes, topic: str, received_at_ns: int) -> Intake:
    """Give a record whose number was taken a place under an epoch that stands for the other device.

    The epoch is derived, so that all records of one clone come together; what a second clone wrote under the same
    number stays a dead letter.
    """
    unpacked = unpack(payload)
    other = hashlib.sha256(f"conflict {key.epoch}".encode()).hexdigest()[:16]
    arrival, notes = arrival_of(key._replace(epoch=other), 1, unpacked.batch.records, unpacked.blobs, topic)
    return Intake(received_at_ns, (arrival,), dead_letters=tuple(notes))
