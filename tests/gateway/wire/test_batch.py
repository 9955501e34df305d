"""The three forms of a batch, and what a hostile peer may send in their place."""

import struct
import tracemalloc
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.batch import CONTENT_FRAMED, CONTENT_JSON, CONTENT_ZLIB, MAX_JSON_BYTES, pack, unpack
from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import Record, RecordBatch, encode

EPOCH = "9f86d081884c7d65"


def record(seq: int, body: bytes = b'{"n":1}', blob: bytes = b"") -> Record:
    return Record(seq=seq, kind="event", recorded_at_ns=1, body=msgspec.Raw(body), blob_bytes=len(blob))


def batch(*records: Record, base: int = 1) -> RecordBatch:
    return RecordBatch(epoch=EPOCH, base=base, records=list(records))


def frame(body: bytes, tail: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">4sI", b"SLB1", len(body) if length is None else length) + body + tail


@given(
    st.lists(
        st.tuples(st.dictionaries(st.text(max_size=8), st.integers(-(2**53), 2**53)), st.binary(max_size=300)),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 2**62),
)
def test_a_batch_unpacks_to_what_was_packed(rows: list[tuple[dict[str, int], bytes]], first: int) -> None:
    records = [record(first + at, msgspec.json.encode(body), blob) for at, (body, blob) in enumerate(rows)]
    blobs = [blob for _, blob in rows]
    packed = pack(batch(*records, base=first), blobs)
    unpacked = unpack(packed.payload)
    assert [(r.seq, bytes(r.body), r.blob_bytes) for r in unpacked.batch.records] == [
        (r.seq, bytes(r.body), r.blob_bytes) for r in records
    ]
    assert list(unpacked.blobs) == blobs
    assert packed.content_type == (CONTENT_FRAMED if any(blobs) else packed.content_type)


def test_the_form_fits_the_content() -> None:
    small, large = batch(record(1)), batch(*(record(n) for n in range(1, 200)))
    assert pack(small).content_type == CONTENT_JSON
    assert pack(large).content_type == CONTENT_ZLIB
    assert len(pack(large).payload) < len(encode(large)) / 4
    assert pack(batch(record(1, blob=b"jpeg")), [b"jpeg"]).content_type == CONTENT_FRAMED


def test_blobs_that_do_not_fit_are_not_packed() -> None:
    with pytest.raises(ValueError, match="lengths of the blobs"):
        pack(batch(record(1, blob=b"jpeg")), [b"other length"])


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "empty"),
        (b"\x00\x01", "no form begins with byte 0x00"),
        (b"SLB2\x00\x00\x00\x00", "no SLB1 header"),
        (b"SLB1", "no SLB1 header"),
        (frame(b"{}", length=2**32 - 1), "shorter than its header says"),
        (frame(encode(batch(record(1, blob=b"four"))), b"fou"), "blobs do not fit"),
        (frame(encode(batch(record(1, blob=b"four"))), b"fours"), "blobs do not fit"),
        (frame(b"\xff" * 8), "RecordBatch"),
        (frame(b""), "RecordBatch"),
        (encode(batch(record(1, blob=b"four"))), "blobs do not fit"),
        (encode(batch()), "no records"),
        (encode(batch(record(2), record(2))), "not in order"),
        (encode(batch(record(3), record(2))), "not in order"),
        (encode(batch(record(2), base=3)), "base is above"),
        (encode(batch(record(1))).replace(b'"blob_bytes":0', b'"blob_bytes":-1'), "blob_bytes"),
        (encode(batch(record(1))).replace(b'"seq":1', b'"seq":' + b"9" * 40), "seq"),
        (encode(batch(record(1))).replace(b'"recorded_at_ns":1', b'"recorded_at_ns":-5'), "recorded_at_ns"),
        (b"\x78\x9c" + b"\xff" * 30, "RecordBatch"),
        (b"\x78", "truncated"),
        (zlib.compress(encode(batch(record(1))))[:-4], "truncated"),
        (zlib.compress(encode(batch(record(1)))) + b"more", "4 bytes follow"),
        (zlib.compress(b"not json"), "RecordBatch"),
        (b'{"records":' + b"[" * 500_000, "RecordBatch"),
        (b'{"epoch":"\xff"}', "RecordBatch"),
    ],
)
def test_a_malformed_payload_is_refused_with_the_reason(payload: bytes, complaint: str) -> None:
    with pytest.raises(MalformedMessageError, match=complaint):
        unpack(payload)


def test_two_large_blob_lengths_that_cancel_out_are_refused() -> None:
    body = encode(batch(record(1, blob=b"four"), record(2)))
    evil = body.replace(b'"blob_bytes":4', b'"blob_bytes":8').replace(b'"blob_bytes":0', b'"blob_bytes":-4')
    assert evil != body
    with pytest.raises(MalformedMessageError):
        unpack(frame(evil, b"four"))


def test_a_zlib_bomb_is_refused_within_the_memory_it_may_use() -> None:
    deflater = zlib.compressobj(9)
    bomb = b"".join(deflater.compress(b" " * 1_048_576) for _ in range(160)) + deflater.flush()  # ten times the limit
    assert len(bomb) < 256 * 1024
    tracemalloc.start()
    with pytest.raises(MalformedMessageError, match="larger than"):
        unpack(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_JSON_BYTES


def test_a_payload_just_within_the_limit_is_accepted() -> None:
    """The control of the bomb: the limit does not refuse what may be sent."""
    body = b'{"n":"' + b"x" * (MAX_JSON_BYTES - 4096) + b'"}'
    assert len(unpack(zlib.compress(encode(batch(record(1, body))), 1)).batch.records) == 1


@given(
    st.binary(max_size=400), st.sampled_from([b"", b"S", b"SLB1\x00\x00\x00\x02{}", b"\x78\x9c", b"{", b'{"records":['])
)
def test_no_bytes_at_all_raise_anything_else(payload: bytes, prefix: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        unpack(prefix + payload)
