"""A store that a device has put aside shows among the gaps, with what is known of it."""

import msgspec

from cloud_bridge.store.base import Store
from cloud_bridge.values import StreamKey
from gateway.wire.messages import Notice
from tests.cloud_bridge.store.test_contract import take
from tests.simulators.samples import AT, batch, event, record

OLD, NEW = "00000000000000aa", "00000000000000bb"


def put_aside(epoch: str | None = OLD, **missing: tuple[int, int]) -> Notice:
    made = {"code": "store_quarantined", "severity": "error", "detail": "kept as outbox.db.quarantined", "at": AT}
    return msgspec.convert({**made, "epoch": epoch, "missing": missing}, Notice)


def test_a_store_never_heard_of_is_a_gap_without_an_end(store: Store) -> None:
    outcome = take(store, batch(record(1, put_aside()), epoch=NEW), "critical", at=5)
    assert outcome.marks == {StreamKey("dock", NEW, "critical"): 1}
    (gap,) = store.gaps()
    assert (gap.key, gap.first, gap.last, gap.source) == (StreamKey("dock", OLD, ""), 1, 0, "quarantine")
    assert gap.is_open
    assert gap.reason == "kept as outbox.db.quarantined"
    assert store.gaps(gateway="gate") == []
    assert store.gaps(source="eviction") == []
    assert store.gaps(before=gap.place) == []
    assert store.check() == []


def test_of_a_store_that_was_heard_of_each_class_shows_from_where_on(store: Store) -> None:
    take(store, batch(*(record(n) for n in range(1, 8)), epoch=OLD))
    take(store, batch(record(1), epoch=OLD), "critical")
    take(store, batch(record(1, put_aside()), epoch=NEW), "critical")
    shown = {(gap.key.record_class, gap.first, gap.is_open) for gap in store.gaps()}
    assert shown == {("event", 8, True), ("critical", 2, True)}
    first = store.gaps(limit=1)
    second = store.gaps(limit=1, before=first[0].place)
    assert {gap.key.record_class for gap in (*first, *second)} == {"event", "critical"}


def test_numbers_that_the_device_could_still_read_are_gaps_like_any_others(store: Store) -> None:
    take(store, batch(*(record(n) for n in range(1, 6)), epoch=OLD))
    outcome = take(store, batch(record(1, put_aside(event=(4, 20))), epoch=NEW), "critical")
    assert outcome.gap_rows == 15
    assert outcome.marks == {StreamKey("dock", NEW, "critical"): 1}, "nobody waits for marks of the old store any more"
    (closed,) = [gap for gap in store.gaps() if not gap.is_open]
    assert (closed.key, closed.first, closed.last) == (StreamKey("dock", OLD, "event"), 6, 20)
    assert closed.source == "quarantine"
    assert {gap.first for gap in store.gaps() if gap.is_open} == {21}


def test_records_brought_in_from_the_kept_file_close_their_gap(store: Store) -> None:
    take(store, batch(record(1, put_aside(event=(1, 10))), epoch=NEW), "critical")
    outcome = take(store, batch(*(record(n, event(f"e{n}")) for n in range(1, 11)), epoch=OLD))
    assert outcome.inserted == 10
    assert [gap.is_open for gap in store.gaps()] == [True]
    assert store.counts().gaps == 0
    assert store.check() == []


def test_the_same_notice_again_or_without_a_name_changes_nothing(store: Store) -> None:
    for _ in range(2):
        take(store, batch(record(1, put_aside()), epoch=NEW), "critical")
    take(store, batch(record(2, put_aside(epoch=None)), epoch=NEW), "critical")
    take(store, batch(record(3, put_aside(epoch=NEW, event=(1, 5))), epoch=NEW), "critical")
    assert len(store.gaps()) == 1
