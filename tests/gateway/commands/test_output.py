"""What commands print for people."""

import pytest

from gateway.commands.output import duration, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0.2, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (22_800, "6 h 20 min"), (90_061, "1 d 1 h")],
)
def test_durations_are_told_in_two_units(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 * 2**20, "64.0 MiB"), (2**41, "2048.0 GiB")],
)
def test_sizes_are_told_in_binary_units(count: int, words: str) -> None:
    assert size(count) == words
