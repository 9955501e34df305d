import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloud_bridge.console.plots import HEIGHT, MAX_CHANNELS, WIDTH, UnreadableEvidenceError, lines_of


def saved(array: NDArray[np.generic]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4", "<i2", "|i1", "|u1", "<u2", ">i4"])
def test_every_plain_type_is_read_as_numpy_reads_it(kind: str) -> None:
    array = np.arange(24).reshape(8, 3).astype(kind)
    lines = lines_of(saved(array))
    assert [(line.minimum, line.maximum, line.samples) for line in lines] == [(0, 21, 8), (1, 22, 8), (2, 23, 8)]
    assert lines[0].rms == pytest.approx(np.sqrt(np.mean(np.arange(0, 24, 3) ** 2.0)))


def test_one_dimension_is_one_channel() -> None:
    (line,) = lines_of(saved(np.array([0.0, 1.0, 0.0], dtype=np.float32)))
    assert points(line.points) == [(0, 69), (320, 3), (640, 69)]


def test_a_long_window_keeps_its_peak() -> None:
    array = np.zeros((3200, 1), dtype=np.float16)
    array[1777] = 5.0
    (line,) = lines_of(saved(array))
    drawn = points(line.points)
    assert len(drawn) == 2 * WIDTH
    assert min(y for _, y in drawn) == 3.0
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)


def test_values_that_are_no_numbers_are_left_out() -> None:
    (line,) = lines_of(saved(np.array([np.nan, 1.0, np.inf, 3.0], dtype=np.float16)))
    assert (line.minimum, line.maximum, len(points(line.points))) == (1.0, 3.0, 2)
    (nothing,) = lines_of(saved(np.full(4, np.nan, dtype=np.float32)))
    assert nothing.points == ""


def test_extreme_values_neither_overflow_nor_leave_the_box() -> None:
    (line,) = lines_of(saved(np.array([-1.7e308, 1.7e308, 0.0])))
    assert all(0 <= y <= HEIGHT for _, y in points(line.points))


def test_too_many_channels_are_cut() -> None:
    assert len(lines_of(saved(np.zeros((2, 100), dtype=np.float16)))) == MAX_CHANNELS


def _with_header(header: str) -> bytes:
    raw = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + bytes(16)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"\x93NUMPY\x09\x00" + bytes(20),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(20),
        saved(np.zeros((2, 2), dtype=np.float32))[:-1],
        saved(np.asfortranarray(np.zeros((2, 2), dtype=np.float32))),
        saved(np.zeros((0, 3), dtype=np.float32)),
        saved(np.zeros((2, 2, 2), dtype=np.float32)),
        saved(np.zeros(4, dtype=np.complex64)),
        saved(np.array(["text"])),
        _with_header("__import__('os').system('true')"),
        _with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}"),
        _with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}"),
        _with_header("{'descr': '<f4', 'fortran_order': False, 'shape': 4}"),
        _with_header("{'descr': 3, 'fortran_order': False, 'shape': (4,)}"),
        _with_header("{'descr': '', 'fortran_order': False, 'shape': (4,)}"),
        _with_header("[" * 3000),
        _with_header("{"),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableEvidenceError):
        lines_of(data)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_make_it_stumble(data: bytes, framed: bool) -> None:
    if framed:
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", min(len(data), 60)) + data
    try:
        lines_of(data)
    except UnreadableEvidenceError:
        return
