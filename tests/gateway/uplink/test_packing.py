import random

import pytest

from gateway.uplink.packing import load_of
from gateway.values import Stored, StoredRun
from gateway.wire.batch import CONTENT_FRAMED, unpack

EPOCH = "0123456789abcdef"


def run_of(sizes: list[int], *, base: int = 1, first: int = 1, blobs: bool = False) -> StoredRun:
    noise = random.Random(1)
    rows = []
    for seq, size in enumerate(sizes, start=first):
        text = noise.randbytes(size)
        body = b'{"x":"' + text.hex()[:size].encode() + b'"}'
        rows.append(Stored(seq, "event", seq, b"{}" if blobs else body, text if blobs else b""))
    return StoredRun("event", EPOCH, base, tuple(rows))


@pytest.mark.parametrize("blobs", [False, True])
@pytest.mark.parametrize("limit", [400, 700, 3000, 100_000])
def test_what_is_packed_fits_is_a_prefix_and_can_be_read_back(limit: int, blobs: bool) -> None:
    run = run_of([100, 200, 50, 150] * 10, blobs=blobs)
    load = load_of(run, limit)
    assert load.packed is not None
    assert len(load.packed.payload) <= limit
    assert (load.packed.content_type == CONTENT_FRAMED) is blobs
    unpacked = unpack(load.packed.payload)
    assert [record.seq for record in unpacked.batch.records] == list(range(1, load.last + 1))
    assert load.records == load.last
    if blobs:
        assert list(unpacked.blobs) == [row.blob for row in run.rows[: load.records]]


def test_a_record_that_does_not_fit_alone_is_told() -> None:
    load = load_of(run_of([5000, 10]), 1000)
    assert (load.packed, load.first, load.last) == (None, 1, 1)


def test_the_base_is_never_above_the_first_record() -> None:
    load = load_of(run_of([10, 10], base=7, first=5), 10_000)
    assert load.packed is not None
    assert unpack(load.packed.payload).batch.base == 5
