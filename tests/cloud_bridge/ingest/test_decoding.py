import zlib
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_bridge.ingest.decoding import MAX_CUSTODY_BYTES, MAX_KEPT_BYTES, intake_of, intakes_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.store.base import Store
from cloud_bridge.values import Intake, StreamKey
from gateway.wire.batch import pack
from gateway.wire.messages import Availability, Kept, PipelineStatus, Record, RecordBatch, encode
from tests.simulators.samples import AT, EPOCH, batch, event, eviction, evidence, measure, notice, record

RECORDS = "sluice/v1/dock/records/event"
KEY = StreamKey("dock", EPOCH, "event")


def taken(payload: bytes, topic: str | bytes = RECORDS, *, retained: bool = False) -> Intake:
    message = Incoming(topic, payload, 1, 1, 1, 0, retained)
    return intake_of([message], root="sluice", received_at_ns=7)


def reasons(intake: Intake) -> list[str]:
    return [letter.reason for letter in intake.dead_letters]


def test_a_batch_becomes_rows_with_what_other_tables_need() -> None:
    blob = b"jpeg"
    payload = batch(
        record(3, event()),
        record(4, measure("temperature")),
        record(5, evidence(), blob=blob),
        base=2,
        blobs=(b"", b"", blob),
    )
    (arrival,) = taken(payload).arrivals
    assert (arrival.key, arrival.base) == (KEY, 2)
    assert [(row.seq, row.kind, row.pipeline) for row in arrival.rows] == [
        (3, "event", "camera"),
        (4, "measure", "temperature"),
        (5, "evidence", "camera"),
    ]
    assert [row.index for row in arrival.rows] == [event(), None, evidence()]
    assert [row.blob for row in arrival.rows] == [b"", b"", blob]
    assert taken(payload).seen == {"dock"}


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        (b"sluice/v1/d\xffck/records/event", b"{}", "bad-topic"),
        ("sluice/v1/DOCK/records/event", b"{}", "bad-topic"),
        ("sluice/v2/dock/records/event", b"{}", "bad-topic"),
        ("sluice/v1/dock/records/event/more", b"{}", "bad-topic"),
        ("sluice/v1/dock/measure/camera", b"{}", "bad-topic"),
        ("sluice/v1/dock/records/secret", b"{}", "unknown-class"),
        (RECORDS, b"", "bad-payload"),
        (RECORDS, b"nonsense", "bad-payload"),
        (RECORDS, batch(record(2**53)), "bad-payload"),
        (RECORDS, b'{"epoch":"zz","base":1,"records":[]}', "bad-payload"),
        ("sluice/v1/dock/availability/gateway", b"[]", "bad-payload"),
        ("sluice/v1/dock/status/camera", b"{}", "bad-payload"),
    ],
)
def test_what_cannot_be_used_is_a_dead_letter_as_it_came(topic: str | bytes, payload: bytes, reason: str) -> None:
    intake = taken(payload, topic)
    assert reasons(intake) == [reason]
    assert intake.dead_letters[0].payload == payload
    assert intake.arrivals == ()


def test_a_dead_letter_keeps_the_first_mebibyte_and_the_true_size() -> None:
    (letter,) = taken(b"x" * (MAX_KEPT_BYTES + 5), "sluice/v1/dock/availability/gateway").dead_letters
    assert (len(letter.payload), letter.payload_bytes) == (MAX_KEPT_BYTES, MAX_KEPT_BYTES + 5)
    assert not letter.is_custody


def test_a_batch_that_cannot_be_read_is_kept_whole_and_says_whose_it_is() -> None:
    (letter,) = taken(b"x" * (MAX_KEPT_BYTES + 5)).dead_letters
    assert (len(letter.payload), letter.sender) == (MAX_KEPT_BYTES + 5, ("dock", "event"))
    assert letter.is_custody


def test_for_a_batch_that_is_too_large_to_be_kept_whole_the_device_still_answers() -> None:
    (letter,) = taken(b"x" * (MAX_CUSTODY_BYTES + 1)).dead_letters
    assert (len(letter.payload), letter.payload_bytes) == (MAX_CUSTODY_BYTES, MAX_CUSTODY_BYTES + 1)
    assert not letter.is_custody


def squeezed(rows: int, body_bytes: int = 10) -> bytes:
    body = msgspec.Raw(b'"' + b"0" * (body_bytes - 2) + b'"')
    records = [Record(seq=at, kind="x", recorded_at_ns=1, body=body) for at in range(1, rows + 1)]
    return zlib.compress(encode(RecordBatch(epoch=EPOCH, base=1, records=records)), 9)


def parts_of(
    payload: bytes, count: int, *, most_bytes: int, most_records: int = 10**9
) -> list[tuple[list[Incoming], Intake]]:
    messages = [Incoming(RECORDS, payload, at, 1, 1, 0) for at in range(count)]
    return list(intakes_of(messages, root="sluice", received_at_ns=1, most_bytes=most_bytes, most_records=most_records))


def held(intake: Intake) -> int:
    letters = sum(len(letter.payload) for letter in intake.dead_letters)
    return letters + sum(len(row.body) for arrival in intake.arrivals for row in arrival.rows)


def test_what_is_held_at_once_is_bounded_by_what_it_unfolds_to() -> None:
    payload = squeezed(1, 300_000)
    assert len(payload) * 20 < 20_000  # the bound on what was sent would let all of them through at once
    parts = parts_of(payload, 20, most_bytes=2_200_000)  # a row and a note of its unknown kind each
    assert [[one.packet_id for one in taken] for taken, _ in parts] == [
        list(range(at, min(at + 4, 20))) for at in range(0, 20, 4)
    ]
    assert max(held(intake) for _, intake in parts) < 2_800_000
    everything = intake_of((one for taken, _ in parts for one in taken), root="sluice", received_at_ns=1)
    assert held(everything) == sum(held(intake) for _, intake in parts) > 10_000_000


def test_what_is_written_at_once_is_bounded_by_its_records() -> None:
    parts = parts_of(squeezed(1000), 10, most_bytes=1 << 30, most_records=3000)
    assert [len(taken) for taken, _ in parts] == [3, 3, 3, 1]


def test_a_part_is_decoded_when_it_is_asked_for() -> None:
    asked: list[int] = []

    def messages() -> Iterator[Incoming]:
        for at in range(5):
            asked.append(at)
            yield Incoming(RECORDS, squeezed(10), at, 1, 1, 0)

    parts = intakes_of(messages(), root="sluice", received_at_ns=1, most_bytes=1 << 30, most_records=20)
    next(parts)
    assert asked == [0, 1]


def test_what_cannot_be_read_counts_too() -> None:
    parts = parts_of(b"?" * 1000, 4, most_bytes=2000)
    assert [len(intake.dead_letters) for _, intake in parts] == [2, 2]


@pytest.mark.parametrize(("rows", "letters"), [(10_000, []), (10_001, ["bad-payload"])])
def test_a_batch_of_more_records_than_any_device_sends_is_kept_as_it_came(rows: int, letters: list[str]) -> None:
    payload = squeezed(rows)
    intake = intake_of([Incoming(RECORDS, payload, 1, 1, 1, 0)], root="sluice", received_at_ns=1)
    assert [letter.reason for letter in intake.dead_letters if letter.reason != "unknown-kind"] == letters
    assert all(letter.payload == payload and letter.is_custody for letter in intake.dead_letters) or not letters


def test_a_range_of_kept_numbers_that_is_none_spoils_the_batch() -> None:
    kept = [Kept(first=9, last=3, digest="0" * 32)]
    payload = pack(RecordBatch(epoch=EPOCH, base=10, records=[record(10)], kept=kept)).payload
    (letter,) = taken(payload).dead_letters
    assert (letter.reason, letter.detail) == ("bad-payload", "RecordBatch: 9 to 3 is no range")


@pytest.mark.parametrize(
    ("given_record", "reason"),
    [
        (record(1, b'{"x":1}', kind="hologram"), "unknown-kind"),
        (record(1, b'{"x":1}', kind="event"), "bad-body"),
        (record(1, b"[1]", kind="measure"), "bad-body"),
        (record(1, eviction("event", 5, 3)), "bad-body"),
        (record(1, event("e\0vil")), "bad-body"),
        (record(1, event("e" * 600)), "bad-body"),
        (record(1, b'{"x":1}', kind="h\0logram"), "unknown-kind"),
    ],
)
def test_a_body_that_is_not_what_its_kind_says_is_kept_and_noted_with_its_key(
    store: Store, given_record: object, reason: str
) -> None:
    intake = taken(batch(given_record, record(2)))  # type: ignore[arg-type]  # a record
    assert reasons(intake) == [reason]
    assert (intake.dead_letters[0].key, intake.dead_letters[0].seq) == (KEY, 1)
    outcome = store.ingest(intake)
    assert (outcome.inserted, outcome.marks) == (2, {KEY: 2})
    assert store.counts().dead_letters == {reason: 1}


def test_availability_and_status_are_for_the_fleet() -> None:
    online = Availability(state="online", at=AT, version="1")
    status = PipelineStatus(pipeline="camera", state="running", source_state="streaming", at=AT)
    assert taken(encode(online), "sluice/v1/dock/availability/gateway").availability == (("dock", online),)
    assert taken(encode(status), "sluice/v1/dock/status/camera").statuses == (("dock", status),)


def test_what_a_broker_has_retained_is_no_sign_of_life() -> None:
    online = encode(Availability(state="online", at=AT))
    assert taken(online, "sluice/v1/dock/availability/gateway", retained=True).seen == frozenset()
    assert taken(online, "sluice/v1/dock/availability/gateway").seen == {"dock"}


def test_of_a_dead_letter_it_is_known_whether_its_message_was_retained() -> None:
    for retained in (True, False):
        (letter,) = taken(b"junk", "sluice/v1/dock/availability/gateway", retained=retained).dead_letters
        assert letter.retained is retained


def test_a_cleared_retained_message_is_nothing() -> None:
    assert taken(b"", "sluice/v1/dock/availability/gateway") == Intake(7)


@given(st.binary(max_size=200) | st.builds(lambda tail: batch(record(1, notice()))[:-3] + tail, st.binary(max_size=8)))
def test_no_payload_raises(payload: bytes) -> None:
    for topic in (RECORDS, "sluice/v1/dock/status/camera", "sluice/v1/dock/availability/gateway"):
        taken(payload, topic)


@given(st.binary(max_size=80))
def test_no_topic_raises(topic: bytes) -> None:
    assert taken(b"{}", topic).arrivals == ()
