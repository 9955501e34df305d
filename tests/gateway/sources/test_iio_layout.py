import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.sources.iio_layout import Element, layout_of, parse_type


def test_the_layout_of_a_channel_is_parsed() -> None:
    assert parse_type("in_accel_x", 2, "be:s12/16>>4\n") == Element("in_accel_x", 2, True, True, 12, 16, 4)
    assert parse_type("in_voltage0", 0, "le:u24/32>>0") == Element("in_voltage0", 0, False, False, 24, 32, 0)
    assert parse_type("in_timestamp", 3, "le:s64/64>>0").bits == 64


@pytest.mark.parametrize(
    "text", ["", "le:s16", "xx:s16/16>>0", "le:s17/16>>0", "le:s16/24>>0", "le:s12/16>>8", "le:s16/16X4>>0"]
)
def test_a_layout_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"channel in_x: .*layout"):
        parse_type("in_x", 0, text)


def test_elements_are_placed_by_index_aligned_to_their_size_and_padded_to_the_largest() -> None:
    types = [("t", 9, "le:s64/64>>0"), ("b", 1, "le:u8/8>>0"), ("a", 0, "be:s16/16>>0")]
    layout = layout_of([parse_type(*each) for each in types])
    assert [element.name for element in layout.elements] == ["a", "b", "t"]
    fields = layout.dtype.fields
    assert fields is not None
    assert [fields[name][1] for name in ("a", "b", "t")] == [0, 2, 8]
    assert layout.dtype.itemsize == 16
    scan = np.frombuffer(struct.pack(">hB", -2, 200) + b"\0" * 5 + struct.pack("<q", 10**18), layout.dtype)
    assert [int(layout.raw(scan, name)[0]) for name in ("a", "b", "t")] == [-2, 200, 10**18]


def test_three_axes_without_a_time_stamp_take_six_bytes() -> None:
    assert layout_of([parse_type(name, at, "le:s16/16>>0") for at, name in enumerate("xyz")]).dtype.itemsize == 6


@given(
    st.sampled_from(["be", "le"]),
    st.sampled_from([(12, 16, 4), (16, 16, 0), (24, 32, 8), (20, 32, 12), (64, 64, 0), (8, 8, 0), (10, 16, 2)]),
    st.data(),
)
def test_what_a_driver_packs_is_unpacked(order: str, widths: tuple[int, int, int], data: st.DataObject) -> None:
    bits, storage, shift = widths
    signed = data.draw(st.booleans())
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << min(bits, 63)) - 1)
    values = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=20))
    noise = data.draw(st.integers(0, (1 << shift) - 1))  # what is not valid may hold anything
    stored = [((value & (1 << bits) - 1) << shift) | noise for value in values]
    raw = b"".join(value.to_bytes(storage // 8, "big" if order == "be" else "little") for value in stored)
    layout = layout_of([parse_type("x", 0, f"{order}:{'s' if signed else 'u'}{bits}/{storage}>>{shift}")])
    assert layout.raw(np.frombuffer(raw, layout.dtype), "x").tolist() == values
