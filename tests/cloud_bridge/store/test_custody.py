"""Batches that the bridge could not read: it answers for them, so it must not lose them, nor take them twice."""

from cloud_bridge.ingest.decoding import intake_of, refused
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.letters import replay
from cloud_bridge.store.base import Limits, Store
from cloud_bridge.store.listing import LISTED_BYTES
from cloud_bridge.values import DeadLetter, Intake
from gateway.wire.batch import pack, payload_digest
from gateway.wire.messages import Kept, RecordBatch
from tests.simulators.samples import EPOCH, batch, record

TOPIC = "sluice/v1/dock/records/event"
LATER = batch(*(record(seq) for seq in range(3, 6)))
"""Stands for a batch in a form that only a later bridge can read."""
DIGEST = payload_digest(LATER)


def take(store: Store, payload: bytes) -> None:
    store.ingest(intake_of([Incoming(TOPIC, payload, 1, 1, 1, 0)], root="sluice", received_at_ns=5))


def keep(store: Store, payload: bytes = LATER) -> None:
    letter = refused(Incoming(TOPIC, payload, 1, 1, 1, 0), "bad-payload", "a later version", ("dock", "event"))
    store.ingest(Intake(5, dead_letters=(letter,)))


def later_batch(*, kept: list[Kept]) -> bytes:
    return pack(RecordBatch(epoch=EPOCH, base=1, records=[record(6), record(7)], kept=kept)).payload


def test_the_mark_passes_numbers_that_the_device_knows_to_be_in_a_dead_letter(store: Store) -> None:
    take(store, batch(record(1), record(2)))
    keep(store)
    take(store, later_batch(kept=[Kept(first=3, last=5, digest=DIGEST)]))
    assert store.streams()[0].mark == 7
    (gap,) = store.gaps()
    assert (gap.first, gap.last, gap.source, gap.reason) == (3, 5, "dead-letter", DIGEST)
    assert store.gaps(source="dead-letter") == [gap]
    assert store.check() == []


def test_the_control_without_the_word_of_the_device_the_mark_stands_still(store: Store) -> None:
    take(store, batch(record(1), record(2)))
    keep(store)
    take(store, later_batch(kept=[]))
    assert store.streams()[0].mark == 2


def test_a_dead_letter_that_is_replayed_fills_its_gap_once(store: Store) -> None:
    take(store, batch(record(1), record(2)))
    keep(store)
    keep(store, batch(*(record(seq) for seq in range(2, 5))))  # the device has sent the rows again, in other pieces
    take(store, later_batch(kept=[Kept(first=3, last=5, digest=DIGEST)]))
    told = [replay(store, stored.id, root="sluice", received_at_ns=9) for stored in store.dead_letters()]
    assert all(one.settled for one in told)
    assert (store.dead_letters(), store.gaps(), store.counts().records) == ([], [], 7)
    assert store.streams()[0].mark == 7
    assert store.check() == []


def test_what_is_replayed_before_the_device_has_said_where_it_belongs_is_no_gap_afterwards(store: Store) -> None:
    take(store, batch(record(1), record(2)))
    keep(store)
    (stored,) = store.dead_letters()
    assert replay(store, stored.id, root="sluice", received_at_ns=9).settled
    take(store, later_batch(kept=[Kept(first=3, last=5, digest=DIGEST)]))
    assert (store.streams()[0].mark, store.gaps(), store.counts().records) == (7, [], 7)


def test_a_dead_letter_keeps_its_sender(store: Store) -> None:
    keep(store)
    (stored,) = store.dead_letters(gateway="dock")
    assert (stored.letter.sender, stored.letter.key) == (("dock", "event"), None)
    assert stored.letter.is_custody
    assert store.dead_letters(gateway="other") == []


def test_a_list_of_dead_letters_holds_the_beginning_of_each_payload_and_one_alone_all_of_it(store: Store) -> None:
    """A device may have the bridge keep many of 16 MiB, and a page shows hundreds."""
    whole = bytes(range(256)) * 4096
    sender = ("dock", "event")
    for at in range(30):
        payload = whole + bytes([at])
        letter = DeadLetter("bad-payload", "t", "d", payload, len(payload), sender=sender)
        cut = DeadLetter("bad-payload", "t", "d", payload[:-1], len(payload), sender=sender)
        store.ingest(Intake(at, dead_letters=(letter, cut, DeadLetter("bad-topic", f"{at}", "", b"", 0))))
    listed = store.dead_letters(limit=100)
    assert len(listed) == 61  # those that were cut are the same
    assert sum(len(one.letter.payload) for one in listed) == 31 * LISTED_BYTES
    held = [one for one in listed if one.letter.is_custody]
    assert len(held) == 30
    alone = store.dead_letter(held[0].id)
    assert alone is not None
    assert alone.letter.payload == whole + bytes([29])
    assert alone.letter.is_custody


def test_retention_keeps_the_only_copy_of_records_as_long_as_the_records(store: Store) -> None:
    keep(store)
    store.sweep(Limits({"event": 3}, dead_letters_before_ns=100), 10)
    store.sweep(Limits({}, dead_letters_before_ns=100), 10)  # records are kept for ever
    assert len(store.dead_letters()) == 1
    store.sweep(Limits({"event": 100}, dead_letters_before_ns=3), 10)
    assert len(store.dead_letters()) == 1, "nor shorter than dead letters are kept"
    assert store.sweep(Limits({"event": 100}, dead_letters_before_ns=100), 10).dead_letters == 1
    assert store.dead_letters() == []
