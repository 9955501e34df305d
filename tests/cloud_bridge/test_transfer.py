import io
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cloud_bridge.errors import TransferError
from cloud_bridge.seal import Seal
from cloud_bridge.store.base import RecordFilter, Store
from cloud_bridge.transfer import (
    CHUNK_BYTES,
    CHUNK_RECORDS,
    MAX_LINE_BYTES,
    chunks,
    everything,
    export_ndjson,
    export_parquet,
    read_lines,
)
from cloud_bridge.values import StreamKey
from gateway.wire.messages import encode
from tests.simulators.samples import AT, EPOCH, event, evidence


def line(seq: int, **other: Any) -> bytes:
    fields = {
        "gateway": "dock",
        "epoch": EPOCH,
        "class": "event",
        "seq": seq,
        "kind": "event",
        "recorded_at_ns": 5,
        "body": json.loads(encode(event(f"e{seq}"))),
        **other,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def test_lines_in_any_order_and_twice_are_imported_once(store: Store) -> None:
    lines = [line(3), line(1), line(2), line(3)]
    assert store.ingest(read_lines(lines, None).intake(1)).inserted == 3
    again = store.ingest(read_lines(lines[:2], None).intake(2))
    assert (again.inserted, again.duplicates) == (0, 2)
    assert store.streams()[0].mark == 3
    assert store.counts().events == 3


def test_two_records_of_one_number_in_one_file_are_both_kept(store: Store) -> None:
    other = line(2, body=json.loads(encode(event("other"))))
    outcome = store.ingest(read_lines([line(1), line(2), line(3), other, line(3)], None).intake(1))
    assert (outcome.inserted, outcome.duplicates, len(outcome.conflicts)) == (3, 1, 1)
    assert store.counts().dead_letters == {"conflict": 1}


def test_an_import_does_not_say_that_older_records_will_never_come(store: Store) -> None:
    store.ingest(read_lines([line(10)], None).intake(1))
    assert store.gaps() == []
    assert store.streams()[0].mark == 0


def test_the_gateway_may_be_given_from_outside() -> None:
    chunk = read_lines([line(1, gateway=None)], "gate")
    assert chunk.arrivals[0].key == StreamKey("gate", EPOCH, "event")
    assert read_lines([line(1, gateway=None)], None).bad == ("line 1: names no gateway; give --gateway",)


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        line(0),
        line(2**60),
        line(1, epoch="x"),
        line(1, gateway="DOCK"),
        line(1, blob="%%%"),
        line(1, recorded_at_ns=2**70),
        line(1, **{"class": "secret"}),
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_bad_line_is_named_and_the_others_are_used(bad: bytes) -> None:
    chunk = read_lines([line(1), bad, b"  ", line(2)], None, first_line=11)
    assert len(chunk.bad) == 1
    assert chunk.bad[0].startswith("line 12: ")
    assert [row.seq for row in chunk.arrivals[0].rows] == [1, 2]
    assert chunk.lines == 4


def test_what_is_exported_can_be_imported_elsewhere(store: Store, tmp_path: Path) -> None:
    proof = line(1, kind="evidence", body=json.loads(encode(evidence())), blob=b64encode(b"\xff\x00").decode())
    lines = [line(n) for n in range(1, 1203)] + [json.dumps({**json.loads(proof), "class": "bulk"}).encode()]
    store.ingest(read_lines(lines, None).intake(1))
    out = io.BytesIO()
    assert export_ndjson(store, RecordFilter(), out, at=AT) == 1203
    out.seek(0)
    sizes = []
    seal = Seal()
    found: list[int] = []
    for chunk in chunks(out):
        sizes.append(len(chunk))
        read = read_lines(seal.checked(chunk), None)
        assert read.bad == ()
        found += [row.seq for arrival in read.arrivals for row in arrival.rows if arrival.key.record_class == "event"]
        blobs = [row.blob for arrival in read.arrivals for row in arrival.rows if arrival.key.record_class == "bulk"]
    assert sizes == [CHUNK_RECORDS, CHUNK_RECORDS, 205]
    assert (seal.finish(), seal.unsealed) == ([], 0)
    assert found == list(range(1, 1203))
    assert blobs == [b"\xff\x00"]


def test_parquet_has_a_column_for_each_field(store: Store, tmp_path: Path) -> None:
    store.ingest(read_lines([line(n) for n in range(1, 4)], None).intake(7))
    file = tmp_path / "records.parquet"
    assert export_parquet(store, RecordFilter(kind="event"), file) == 3
    table = pq.read_table(file)
    assert table.column("seq").to_pylist() == [1, 2, 3]
    assert table.column("class").to_pylist() == ["event"] * 3
    assert json.loads(table.column("body")[0].as_py())["event_id"] == "e1"
    assert str(table.schema.field("recorded_at").type) == "timestamp[ns, tz=UTC]"


def test_parquet_into_nowhere_is_an_error_with_its_place(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="nowhere"):
        export_parquet(store, RecordFilter(), tmp_path / "nowhere" / "x.parquet")


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(TransferError, match="longer"):
        list(chunks(io.BytesIO(b"x" * (MAX_LINE_BYTES + 2))))


def picture(seq: int, size_bytes: int) -> bytes:
    """Make a line that holds a picture of so many bytes."""
    body = json.loads(encode(evidence()))
    blob = b64encode(bytes([seq % 256]) * size_bytes).decode()
    return line(seq, kind="evidence", body=body, blob=blob, **{"class": "bulk"}) + b"\n"


def test_pictures_come_in_a_few_at_a_time_and_one_that_is_larger_comes_alone() -> None:
    lines = [picture(n, 1_000_000) for n in range(1, 20)] + [picture(20, 9_000_000)] + [line(21) + b"\n"]
    found = list(chunks(io.BytesIO(b"".join(lines))))
    assert [each for chunk in found for each in chunk] == lines
    assert [len(chunk) for chunk in found] == [6, 6, 6, 1, 1, 1]
    assert all(sum(map(len, chunk)) <= CHUNK_BYTES for chunk in found if len(chunk) > 1)


def test_an_export_never_holds_many_pictures_at_once(store: Store) -> None:
    store.ingest(read_lines([line(n) for n in range(1, 41)], None).intake(1))
    store.ingest(read_lines([picture(n, 300_000) for n in range(1, 101)], None).intake(1))
    pages = [[len(record.blob) for record in page] for page in everything(store, RecordFilter())]
    assert sum(len(page) for page in pages) == 140
    assert sum(sum(page) for page in pages) == 30_000_000
    assert max(sum(page) for page in pages) <= 12_000_000
