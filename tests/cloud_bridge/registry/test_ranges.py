"""The header `Range` (RFC 9110 §14)."""

import pytest

from cloud_bridge.registry.ranges import Part, UnsatisfiableError, part_of


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", Part(0, 1)),
        ("bytes=0-9", Part(0, 10)),
        ("bytes=0-99", Part(0, 10)),
        ("bytes=9-", Part(9, 1)),
        ("bytes=-3", Part(7, 3)),
        ("bytes=-30", Part(0, 10)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=1-2,4-5", None),
        ("lines=1-2", None),
        ("bytes=x-", None),
    ],
)
def test_a_range_names_a_part_of_ten_bytes(header: str | None, expected: Part | None) -> None:
    assert part_of(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_beyond_the_end_is_told(header: str) -> None:
    with pytest.raises(UnsatisfiableError):
        part_of(header, 10)
