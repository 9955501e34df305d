from cloud_bridge.ingest.decoding import MAX_KEPT_BYTES, intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.letters import discard, replay
from cloud_bridge.store.base import Limits, Store
from cloud_bridge.values import DeadLetter, Intake, StreamKey
from tests.simulators.samples import EPOCH, batch, event, record

TOPIC = "sluice/v1/dock/records/event"
KEY = StreamKey("dock", EPOCH, "event")


def keep(store: Store, letter: DeadLetter) -> int:
    store.ingest(Intake(1, dead_letters=(letter,)))
    return max(stored.id for stored in store.dead_letters())


def test_a_message_that_is_understood_now_is_stored_and_its_letter_removed(store: Store) -> None:
    payload = batch(record(1, event()), record(2))
    number = keep(store, DeadLetter("bad-payload", TOPIC, "an older version", payload, len(payload)))
    assert replay(store, number, root="sluice", received_at_ns=9).settled
    assert (store.counts().records, store.counts().events, store.dead_letters()) == (2, 1, [])
    assert store.streams()[0].mark == 2


def test_a_message_that_is_still_not_understood_stays(store: Store) -> None:
    number = keep(store, DeadLetter("bad-payload", TOPIC, "", b"junk", 4))
    result = replay(store, number, root="sluice", received_at_ns=9)
    assert not result.settled
    assert "RecordBatch" in result.detail
    assert store.counts().dead_letters == {"bad-payload": 1}


def test_a_message_that_was_cut_cannot_be_replayed(store: Store) -> None:
    number = keep(store, DeadLetter("bad-payload", TOPIC, "", b"x", MAX_KEPT_BYTES + 1))
    assert "first part" in replay(store, number, root="sluice", received_at_ns=9).detail


def test_a_record_whose_body_is_understood_now_is_indexed_and_not_doubled(store: Store) -> None:
    payload = batch(record(1, event()))
    store.ingest(intake_of([Incoming(TOPIC, payload, 1, 1, 1, 0)], root="sluice", received_at_ns=1))
    store.sweep(Limits({"critical": 5, "event": 5}), 0)  # nothing; only that a limit of nothing is one
    number = keep(store, DeadLetter("bad-body", TOPIC, "", b"{}", 2, KEY, 1))
    assert replay(store, number, root="sluice", received_at_ns=9).settled
    assert (store.counts().records, store.counts().events, store.dead_letters()) == (1, 1, [])


def test_a_note_of_a_record_that_retention_has_removed_is_settled(store: Store) -> None:
    number = keep(store, DeadLetter("bad-body", TOPIC, "", b"{}", 2, KEY, 1))
    assert replay(store, number, root="sluice", received_at_ns=9).settled
    assert store.counts().records == 0


def test_discarding_removes_and_says_when_there_is_nothing(store: Store) -> None:
    number = keep(store, DeadLetter("bad-topic", "t", "", b"", 0))
    assert discard(store, number).settled
    assert not discard(store, number).settled
    assert not replay(store, number, root="sluice", received_at_ns=9).settled


def test_a_batch_in_custody_with_a_record_that_is_only_noted_is_taken_whole(store: Store) -> None:
    payload = batch(record(1, event()), record(2, kind="of-a-later-version"), record(3))
    number = keep(store, DeadLetter("bad-payload", TOPIC, "an older version", payload, len(payload)))
    assert replay(store, number, root="sluice", received_at_ns=9).settled
    assert store.counts().records == 3
    assert store.streams()[0].mark == 3
    assert "bad-payload" not in store.counts().dead_letters
    assert sum(store.counts().dead_letters.values()) == 1
