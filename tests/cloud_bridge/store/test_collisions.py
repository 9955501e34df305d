"""Two records under one number: kept apart, told, and never taken for duplicates; on both databases."""

import pytest

from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.letters import replay
from cloud_bridge.store.base import Store
from cloud_bridge.transfer import read_lines
from cloud_bridge.values import Outcome, StreamKey
from gateway.wire.messages import Message, Withheld, encode, record_digest
from tests.simulators.samples import EPOCH, batch, event, evidence, measure, record

KEY = StreamKey("dock", EPOCH, "event")
TOPIC = "sluice/v1/dock/records/event"


def take(store: Store, *payloads: bytes, at: int = 1) -> Outcome:
    messages = [Incoming(TOPIC, payload, 1, 1, 1, 0) for payload in payloads]
    return store.ingest(intake_of(messages, root="sluice", received_at_ns=at))


def withheld(body: Message, kind: str, blob: bytes = b"") -> bytes:
    digest = record_digest(kind, encode(body), blob)
    return encode(Withheld(kind=kind, reason="too-large", size_bytes=len(encode(body)) + len(blob), digest=digest))


def test_another_record_under_a_known_number_is_kept_as_a_dead_letter(store: Store) -> None:
    take(store, batch(record(1, event("a")), record(2, event("b"))))
    outcome = take(store, batch(record(2, event("clone")), record(3, event("c"))))
    assert (outcome.inserted, outcome.duplicates, len(outcome.conflicts)) == (1, 0, 1)
    (letter,) = store.dead_letters()
    assert (letter.letter.reason, letter.letter.key, letter.letter.seq) == ("conflict", KEY, 2)
    assert b"clone" in letter.letter.payload
    kept = store.record(KEY, 2)
    assert kept is not None
    assert kept.body == encode(event("b"))
    assert store.counts().dead_letters == {"conflict": 1}
    assert store.streams()[0].duplicates == 0


def test_the_same_record_again_is_a_duplicate_however_its_json_is_written(store: Store) -> None:
    blob = b"\xff\x00"
    take(store, batch(record(1, event()), record(2, evidence(), blob=blob), blobs=(b"", blob)))
    outcome = take(store, batch(record(1, event()), record(2, evidence(), blob=blob), blobs=(b"", blob)))
    spaced = encode(event()).replace(b'":', b'": ')
    again = take(store, batch(record(1, spaced, kind="event")))
    assert (outcome.duplicates, again.duplicates) == (2, 1)
    assert outcome.conflicts == again.conflicts == ()


@pytest.mark.parametrize("what", ["kind", "blob"])
def test_another_kind_or_another_blob_is_another_record_too(store: Store, what: str) -> None:
    take(store, batch(record(1, evidence(), blob=b"one"), blobs=(b"one",)))
    other = record(1, measure()) if what == "kind" else record(1, evidence(), blob=b"two")
    outcome = take(store, batch(other, blobs=(b"",) if what == "kind" else (b"two",)))
    assert [letter.seq for letter in outcome.conflicts] == [1]


def test_two_records_of_one_number_that_come_together_are_told_apart(store: Store) -> None:
    outcome = take(store, batch(record(1, event("a"))), batch(record(1, event("b"))))
    assert (outcome.inserted, len(outcome.conflicts)) == (1, 1)


def test_a_number_that_retention_has_emptied_cannot_be_compared_and_is_a_duplicate(store: Store) -> None:
    take(store, batch(record(5, event("a")), base=5))
    outcome = take(store, batch(record(6, event("b")), record(7, event("c")), base=5))
    assert outcome.conflicts == ()


def test_a_conflict_sent_again_and_again_is_one_letter(store: Store) -> None:
    take(store, batch(record(1, event("a"))))
    for _ in range(3):
        assert len(take(store, batch(record(1, event("b")))).conflicts) == 1
    (letter,) = store.dead_letters()
    assert letter.count == 3


def test_a_conflict_replayed_gets_a_stream_of_its_own(store: Store) -> None:
    take(store, batch(record(1, event("a"))))
    take(store, batch(record(1, event("b"))))
    (letter,) = store.dead_letters()
    assert replay(store, letter.id, root="sluice", received_at_ns=9).settled
    assert store.dead_letters() == []
    streams = {stream.key.epoch: stream.records for stream in store.streams()}
    assert streams.pop(EPOCH) == 1
    assert list(streams.values()) == [1]
    assert {stored.event.event_id for stored in store.events()} == {"a", "b"}


def test_the_outcome_names_the_record_that_carries_the_mark(store: Store) -> None:
    first = take(store, batch(record(1, event("a")), record(2, event("b"))))
    assert first.digests == {KEY: record_digest("event", encode(event("b")))}
    hole = take(store, batch(record(4, event("d"))))
    assert hole.digests == first.digests
    again = take(store, batch(record(2, event("clone"))))
    assert again.digests == first.digests, "of what is stored, not of what came"


def test_a_stand_in_is_noted_and_moves_the_mark(store: Store) -> None:
    outcome = take(store, batch(record(1), record(2, withheld(evidence(), "evidence"), kind="withheld"), record(3)))
    assert outcome.marks == {KEY: 3}
    assert store.counts().dead_letters == {"withheld": 1}


def test_a_record_imported_later_takes_the_place_of_its_stand_in(store: Store) -> None:
    take(store, batch(record(1, withheld(event("late"), "event"), kind="withheld")))
    line = b'{"gateway":"dock","epoch":"%s","class":"event","seq":1,"kind":"event","recorded_at_ns":7,"body":%s}'
    chunk = read_lines([line % (EPOCH.encode(), encode(event("late")))], None)
    outcome = store.ingest(chunk.intake(9))
    assert outcome.conflicts == ()
    found = store.record(KEY, 1)
    assert found is not None
    assert (found.kind, found.pipeline, found.body) == ("event", "camera", encode(event("late")))
    assert [stored.event.event_id for stored in store.events()] == ["late"]
    assert store.dead_letters() == []
    # Sent once more, the stand-in does not undo it, and the record is a duplicate.
    assert take(store, batch(record(1, withheld(event("late"), "event"), kind="withheld"))).conflicts == ()
    assert take(store, batch(record(1, event("late")))).conflicts == ()
    assert store.counts().records == 1


def test_a_record_that_is_not_the_announced_one_does_not_take_its_place(store: Store) -> None:
    take(store, batch(record(1, withheld(event("late"), "event"), kind="withheld")))
    assert len(take(store, batch(record(1, event("another")))).conflicts) == 1
    found = store.record(KEY, 1)
    assert found is not None
    assert found.kind == "withheld"
