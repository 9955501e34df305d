"""A medium that keeps what it says passes; one that lies about a single block does not."""

import shutil
import socket
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.commands.qualify import command
from gateway.errors import OutboxError
from gateway.outbox.medium import BLOCK_BYTES, FILE_NAME, SLOTS, acknowledgements, block, verify, write

RUN = b"\x01\x02\x03\x04\x05\x06\x07\x08"


def ticking(turns: int) -> "Clock":
    return Clock(turns)


class Clock:
    """One second a look; a block takes two looks."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 1.0
        return self._now

    @property
    def seconds(self) -> float:
        return 2.0 * self.turns


def written(directory: Path, turns: int) -> tuple[str, int]:
    told: list[tuple[str, int]] = []
    clock = ticking(turns)
    timing = write(directory, clock.seconds, lambda run, number: told.append((run, number)), clock)
    assert timing.count == len(told) == told[-1][1]
    return told[-1]


@pytest.mark.parametrize("turns", [1, 50, SLOTS + 700])
def test_a_medium_that_keeps_everything_passes(tmp_path: Path, turns: int) -> None:
    run, last = written(tmp_path, turns)
    assert last == turns
    assert verify(tmp_path, run, last).missing == ()
    assert verify(tmp_path, run, last - 1).missing == (), "the word of the last one may be lost on its way"


@pytest.mark.parametrize("content", [block(RUN, 7), bytes(BLOCK_BYTES)], ids=["of an earlier run", "never written"])
def test_control_a_single_lost_block_is_found(tmp_path: Path, content: bytes) -> None:
    run, last = written(tmp_path, 100)
    with (tmp_path / FILE_NAME).open("r+b") as stream:
        stream.seek(60 * BLOCK_BYTES)
        stream.write(content)
    assert verify(tmp_path, run, last).missing == (60,)


def test_control_a_rolled_back_overwrite_is_found(tmp_path: Path) -> None:
    run, last = written(tmp_path, SLOTS + 10)
    with (tmp_path / FILE_NAME).open("r+b") as stream:
        stream.seek(5 * BLOCK_BYTES)
        stream.write(block(bytes.fromhex(run), 5))
    assert verify(tmp_path, run, last).missing == (SLOTS + 5,)


def test_a_torn_block_counts_only_where_no_sync_had_returned(tmp_path: Path) -> None:
    run, last = written(tmp_path, SLOTS + 10)
    for number in (last, last + 1):
        with (tmp_path / FILE_NAME).open("r+b") as stream:
            stream.seek(number % SLOTS * BLOCK_BYTES)
            stream.write(b"\xff" * 512)
    assert verify(tmp_path, run, last).missing == (last,)


def test_the_witness_counts_the_last_run_and_whole_lines() -> None:
    lines = ["aaaaaaaaaaaaaaaa 9\n", "bbbbbbbbbbbbbbbb 1\n", "nonsense\n", "bbbbbbbbbbbbbbbb 3\n", "bbbbbbbbbbbbbbbb 4"]
    assert acknowledgements(lines) == ("bbbbbbbbbbbbbbbb", 3)
    assert acknowledgements([]) is None


def test_the_command_refuses_a_witness_on_the_same_medium(tmp_path: Path) -> None:
    answer = CliRunner().invoke(command, ["write", str(tmp_path), "--witness", str(tmp_path / "heard.txt")])
    assert answer.exit_code == 2
    assert "the plug would take it along" in answer.output


def test_the_command_tells_another_machine_and_verifies_with_what_it_heard(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    heard, medium = tmp_path / "heard.txt", tmp_path / "medium"
    medium.mkdir()
    runner = CliRunner()
    listen = ["listen", "--port", str(port), "--address", "127.0.0.1", "--witness", str(heard)]
    thread = threading.Thread(target=lambda: command.main(listen, standalone_mode=False))
    thread.start()
    answer = runner.invoke(command, ["write", str(medium), "--minutes", "0.01", "--host", f"127.0.0.1:{port}"])
    for _ in range(200):
        if answer.exit_code == 0:
            break
        answer = runner.invoke(command, ["write", str(medium), "--minutes", "0.01", "--host", f"127.0.0.1:{port}"])
    thread.join(20)
    assert answer.exit_code == 0, answer.output
    assert "syncs: median" in answer.output
    answer = runner.invoke(command, ["verify", str(medium), "--witness", str(heard)])
    assert answer.exit_code == 0, answer.output
    assert "this cut lost nothing" in answer.output
    with (medium / FILE_NAME).open("r+b") as stream:
        stream.write(bytes(SLOTS * BLOCK_BYTES))
    answer = runner.invoke(command, ["verify", str(medium), "--witness", str(heard)])
    assert answer.exit_code == 1
    assert "NOT FIT" in answer.output
    shutil.rmtree(medium)


def test_a_medium_that_cannot_be_written_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(OutboxError, match="name a directory on the medium"):
        write(tmp_path, 1.0, lambda run, number: None)
