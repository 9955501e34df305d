"""Sizes as people write them."""

import pytest

from gateway.metering.sizes import byte_count


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (4096, 4096),
        ("50MB", 50_000_000),
        ("50 MB", 50_000_000),
        ("1.5GB", 1_500_000_000),
        ("64KiB", 65_536),
        ("8MiB", 8 << 20),
        ("500kB", 500_000),
        ("0.4B", 1),
    ],
)
def test_a_size_is_what_it_says(written: int | str, meant: int) -> None:
    assert byte_count(written) == meant


@pytest.mark.parametrize("written", ["50", "MB", "50 mb", "1e3B", "-1MB", "50MBit"])
def test_what_is_no_size_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="50MB"):
        byte_count(written)
