"""The rig's sensor goes on speaking to a board that was away: each QEMU is another one at the same place."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hil.rig.sensor import SensorFeed, SensorLine


@contextmanager
def board(path: Path) -> Iterator[socket.socket]:
    """Listen as QEMU does; when the power goes, the socket's file stays."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(10.0)
        yield listener


def hears(listener: socket.socket) -> bytes:
    """Return the first line that the board is told."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(10.0)
        return connection.makefile("rb").readline()


def test_a_line_arrives_at_a_board_that_was_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "sensor"
    line = SensorLine(path)
    with board(path) as first:
        line.say(b"1")
        assert hears(first) == b"1\n"
    # The board is off: what is said is lost, however often.
    for _ in range(3):
        with pytest.raises(OSError):  # a broken pipe, or nobody who listens
            line.say(b"2")
    with board(path) as second:
        line.say(b"3")
        assert hears(second) == b"3\n"
    line.close()


def test_a_feed_that_runs_through_a_power_cut_is_heard_afterwards(tmp_path: Path) -> None:
    """Also where it has found the old board once more between the hang-up and the cut."""
    path = tmp_path / "sensor"
    line, feed = SensorLine(path), SensorFeed()
    with board(path) as first:
        feed.start(line.say)
        assert hears(first)
        line.close()
        assert hears(first), "it connects again at once"
    try:
        time.sleep(0.1)  # some lines are lost
        with board(path) as second:
            assert float(hears(second)) == pytest.approx(20.0, abs=2.0)
    finally:
        feed.stop()
        line.close()
