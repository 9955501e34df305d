"""A cache that forgets when the power goes: what was flushed is there, what was not may be; on QEMU's own log."""

import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.rig.diskfaults import recover, writes_fail
from hil.rig.flips import flip_below, write_below
from hil.rig.machine import Board, Machine
from hil.rig.writes import SECTOR, VolatileDisk, Write, forget, read_log, written_operations

LACKING = [name for name in ("qemu-system-x86_64", "qemu-img", "swtpm", "swtpm_setup") if shutil.which(name) is None]
LACKING += [] if any(Path("/usr/share/OVMF").glob("OVMF_CODE*.fd")) else ["ovmf"]
needs_qemu = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")
FLUSH, FUA, DISCARD = 1, 2, 4
KEEP_NOTHING = 1
"""A seed with which chance keeps no sector that was not flushed."""


class LogFile:
    """Writes a log in the format of dm-log-writes (drivers/md/dm-log-writes.c)."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._entries: list[bytes] = []

    def entry(self, sector: int = 0, data: bytes = b"", flags: int = 0, sectors: int | None = None) -> None:
        count = len(data) // SECTOR if sectors is None else sectors
        self._entries.append(struct.pack("<QQQQ", sector, count, flags, 0).ljust(SECTOR, b"\0") + data)

    def write(self, *, cut: int = 0) -> Path:
        head = struct.pack("<QQQI", 0x6A736677736872, 1, len(self._entries), SECTOR).ljust(SECTOR, b"\0")
        content = head + b"".join(self._entries)
        self.file.write_bytes(content[: len(content) - cut])
        return self.file


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "writes.log")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    file = tmp_path / "disk.raw"
    file.write_bytes(bytes(16 * SECTOR))
    return file


def test_what_was_flushed_is_there_and_of_the_rest_what_chance_picks(log: LogFile, raw: Path) -> None:
    log.entry(1, b"a" * SECTOR)
    log.entry(flags=FLUSH)
    log.entry(2, b"b" * SECTOR * 4)
    outcomes = set()
    for seed in range(40):
        disk = raw.with_name(f"{seed}.raw")
        shutil.copyfile(raw, disk)
        cut = forget(disk, log.write(), random.Random(seed))
        content = disk.read_bytes()
        assert content[SECTOR : 2 * SECTOR] == b"a" * SECTOR
        assert cut.flushed == 1
        assert cut.kept_sectors + cut.lost_sectors == 4
        outcomes.add(cut.lost_sectors)
    assert {0, 4} < outcomes, "all gone, all there, and something between"


def test_a_write_that_goes_through_the_cache_is_kept_with_all_before_it(log: LogFile, raw: Path) -> None:
    log.entry(1, b"a" * SECTOR)
    log.entry(2, b"b" * SECTOR, flags=FUA)
    assert forget(raw, log.write(), random.Random(KEEP_NOTHING)).lost_sectors == 0
    assert raw.read_bytes()[SECTOR : 3 * SECTOR] == b"a" * SECTOR + b"b" * SECTOR


def test_a_discard_takes_nothing_away_and_a_torn_end_of_the_log_is_the_end(log: LogFile, raw: Path) -> None:
    log.entry(1, b"a" * SECTOR)
    log.entry(1, flags=DISCARD, sectors=8)
    log.entry(flags=FLUSH)
    log.entry(3, b"c" * SECTOR, flags=FUA)
    assert forget(raw, log.write(cut=10), random.Random(KEEP_NOTHING)).flushed == 1
    assert raw.read_bytes()[SECTOR : 2 * SECTOR] == b"a" * SECTOR
    assert raw.read_bytes()[3 * SECTOR : 4 * SECTOR] == bytes(SECTOR)


def test_another_file_is_no_log() -> None:
    with pytest.raises(RigError, match="no log"):
        list(read_log(bytes(4096)))


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Machine]:
    """A board with nothing to boot. What its guest would write is written by QEMU's own tool for that."""
    image = tmp_path / "empty.raw"
    with image.open("wb") as out:
        out.truncate(16 << 20)
    made = Machine(Board(image=image, directory=tmp_path / "board", disk_bytes=32 << 20, memory_mib=256))
    made.flash()
    try:
        yield made
    finally:
        made.close()


@needs_qemu
@pytest.mark.parametrize("since", ["power on", "snapshot"])
def test_the_disk_of_a_machine_forgets_what_its_guest_did_not_flush(board: Machine, since: str) -> None:
    chance = random.Random(KEEP_NOTHING)
    if since == "snapshot":
        board.power_on()
        write_below(board, 8192, 0x11)
        board.save("early")
        board.qmp.command("stop")
        board.restore("early")
        disk = VolatileDisk(board, chance, snapshot="early")
        disk.insert()
        board.qmp.command("cont")
    else:
        disk = VolatileDisk(board, chance)
        disk.power_on()
    write_below(board, 1 << 20, 0x22, SECTOR)
    board.qmp.monitor('qemu-io -d /machine/peripheral/blk/virtio-backend "flush"')
    write_below(board, 2 << 20, 0x33, SECTOR)
    assert written_operations(board) >= 0
    cut = disk.cut_power()
    assert (cut.kept_sectors, cut.lost_sectors) == (0, 1)
    content = disk.raw.read_bytes()
    assert content[8192] == (0x11 if since == "snapshot" else 0)
    assert content[1 << 20 : (1 << 20) + SECTOR] == b"\x22" * SECTOR
    assert content[2 << 20 : (2 << 20) + SECTOR] == bytes(SECTOR)
    disk.power_on_for_good()
    assert board.running
    disk.restore()
    assert board.disk.name == "disk.qcow2"
    if since == "snapshot":
        board.power_on()
        board.restore("early")


@needs_qemu
def test_a_bit_that_flips_below_a_machine_is_back_with_its_snapshot(board: Machine, tmp_path: Path) -> None:
    board.power_on()
    board.save("early")
    flip_below(board, board.board.image, 4096, bit=3)
    board.qmp.command("stop")  # which flushes: qcow2 keeps in memory where what is new stands
    board.cut_power()
    assert board.raw_disk(tmp_path / "flipped.raw").read_bytes()[4096] == 1 << 3
    board.power_on()
    board.restore("early")
    board.cut_power()
    assert board.raw_disk(tmp_path / "before.raw").read_bytes()[4096] == 0
    with pytest.raises(RigError, match="ends before"):
        flip_below(board, board.board.image, 1 << 40)


@needs_qemu
def test_a_disk_that_fails_takes_nothing_and_takes_it_again_when_it_has_recovered(
    board: Machine, tmp_path: Path
) -> None:
    board.power_on()
    write_below(board, 4096, 0x11)
    writes_fail(board)
    write_below(board, 4096, 0x22)
    write_below(board, 8192, 0x22)
    recover(board)
    write_below(board, 8192, 0x33)
    board.qmp.command("stop")
    content = board.raw_disk(tmp_path / "left.raw").read_bytes()
    assert (content[4096], content[8192]) == (0x11, 0x33)


def test_the_writes_of_a_log_say_where_they_went(log: LogFile) -> None:
    log.entry(9, b"x" * SECTOR)
    log.entry(flags=FLUSH)
    assert list(read_log(log.write().read_bytes())) == [Write(9 * SECTOR, 2 * SECTOR, 3 * SECTOR), None]
