"""A disk that is full to the last byte. Needs a small tmpfs, so root."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import ClassQuota
from gateway.config import Outbox as OutboxSettings
from gateway.errors import OutboxError, OutboxFullError
from gateway.outbox.damage import side
from gateway.outbox.faults import StoreFullError
from gateway.outbox.store import Outbox
from gateway.values import Receipt
from gateway.wire.messages import CLASSES, Notice, RecordClass, decode
from tests.gateway.outbox.outbox_kit import MIB, event, evictions, numbers, picture, rows, settings, until


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Something else takes all that is left."""
    name = place / "other"
    with name.open("ab", buffering=0) as stream:
        for size in (65536, 4096):
            while os.statvfs(place).f_bavail * 4096 >= size:
                stream.write(b"x" * size)
    return name


WITH_BALLAST = settings(ballast_bytes=MIB)
LOOK = """
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, timeout=0.5)
print(db.execute("SELECT count(*) FROM records_critical").fetchone()[0])
"""


def covered(outbox: Outbox, record_class: RecordClass) -> set[int]:
    return {
        seq
        for record in evictions(outbox)
        if record.record_class == record_class
        for seq in range(record.first_seq, record.last_seq + 1)
    }


def test_on_a_full_disk_the_least_urgent_rows_make_room(small_disk: Path) -> None:
    outbox = Outbox.open(small_disk / "state" / "outbox.db", WITH_BALLAST)
    until(lambda: outbox.stats().ballast)
    for n in range(60):
        outbox.put([picture(n, 20_000), event(n), event(n, "critical")])
    other = fill(small_disk)
    for n in range(200):
        outbox.put([event(n), event(n, "critical")], timeout=30)
        if n % 3 == 0:  # whatever was given back is taken at once
            fill(small_disk)
    stats = outbox.stats()
    assert stats.disk_full
    assert not stats.failed
    assert stats.classes["critical"].evicted == 0
    assert stats.classes["bulk"].evicted > 0
    for record_class in CLASSES[1:]:
        held = set(numbers(outbox, record_class))
        assert held | covered(outbox, record_class) == set(range(1, outbox.heads()[record_class][1] + 1))
    assert {record.reason for record in evictions(outbox)} == {"disk-full"}
    other.unlink()
    until(lambda: not outbox.stats().disk_full)
    until(lambda: outbox.stats().ballast)
    outbox.put([picture(n, 20_000) for n in range(10)])
    outbox.close()


def test_when_nothing_may_go_producers_wait_and_nothing_is_lost(small_disk: Path) -> None:
    outbox = Outbox.open(small_disk / "state" / "outbox.db", settings(ballast_bytes=MIB))
    until(lambda: outbox.stats().ballast)
    outbox.put([event(n, "critical") for n in range(100)])
    other = fill(small_disk)
    stored = 100
    try:
        for _ in range(1000):
            stored += len(outbox.put([event(n, "critical") for n in range(100)], timeout=1.5))
            fill(small_disk)
    except OutboxFullError:
        fill(small_disk)
    else:
        pytest.fail("the disk was never full")
    receipts: list[Receipt] = []
    for _ in range(10):
        outbox.submit([event(n, "critical") for n in range(100)], receipts.extend)
    assert outbox.stats().disk_full
    assert not outbox.failed
    assert receipts == []
    other.unlink()
    until(lambda: len(receipts) == 1000, 30)
    assert numbers(outbox, "critical") == list(range(1, stored + 1001))
    assert outbox.stats().classes["critical"].evicted == 0
    outbox.close()


def test_acknowledgements_make_room_on_a_full_disk(small_disk: Path) -> None:
    outbox = Outbox.open(small_disk / "state" / "outbox.db", settings(ballast_bytes=MIB))
    outbox.put([event(n, "critical") for n in range(2000)])
    fill(small_disk)
    receipts: list[Receipt] = []
    for n in range(50):
        outbox.submit([event(n, "critical") for _ in range(100)], receipts.extend)
    fill(small_disk)
    outbox.acknowledge("critical", outbox.epoch, 2000)
    until(lambda: outbox.heads()["critical"][0] == 2001, 30)
    until(lambda: len(receipts) >= 1500, 30)
    assert outbox.stats().classes["critical"].evicted == 0
    outbox.close()


def test_a_store_opens_on_a_full_disk(small_disk: Path) -> None:
    file = small_disk / "state" / "outbox.db"
    outbox = Outbox.open(file, WITH_BALLAST)
    until(lambda: outbox.stats().ballast)
    outbox.put([picture(n, 20_000) for n in range(50)])
    epoch = outbox.epoch
    outbox.close()
    fill(small_disk)
    outbox = Outbox.open(file, WITH_BALLAST)
    assert outbox.epoch == epoch
    assert outbox.put([event(1, "critical")], timeout=30)[0].seq == 1
    outbox.close()


def put_in_turn(outbox: Outbox, count: int, timeout: float) -> None:
    for n in range(count):
        outbox.put([event(n), event(n, "critical")], timeout=timeout)


def closed_store(place: Path, outbox_settings: OutboxSettings) -> Path:
    """A store with rows of three classes; the ballast is gone, and somebody else has the rest of the disk."""
    file = place / "state" / "outbox.db"
    outbox = Outbox.open(file, outbox_settings)
    for n in range(60):
        outbox.put([picture(n, 20_000), event(n), event(n, "critical")])
    outbox.close()
    side(file, ".ballast").unlink(missing_ok=True)
    fill(place)
    assert os.statvfs(place).f_bavail == 0
    return file


def test_a_store_opens_and_goes_on_without_a_free_block_and_without_its_ballast(small_disk: Path) -> None:
    file = closed_store(small_disk, WITH_BALLAST)
    outbox = Outbox.open(file, WITH_BALLAST)
    for n in range(200):
        outbox.put([event(n), event(n, "critical")], timeout=30)
        assert os.statvfs(small_disk).f_bavail * 4096 < 65536
        fill(small_disk)
    assert outbox.stats().classes["critical"].evicted == 0
    for record_class in CLASSES[1:]:
        held = set(numbers(outbox, record_class))
        assert held | covered(outbox, record_class) == set(range(1, outbox.heads()[record_class][1] + 1))
    outbox.close()
    again = Outbox.open(file, WITH_BALLAST)
    assert again.put([event(0, "critical")], timeout=30)
    again.close()


def test_control_a_store_whose_log_keeps_no_blocks_does_not_even_open(small_disk: Path) -> None:
    file = closed_store(small_disk, settings(ballast_bytes=0))
    with pytest.raises(StoreFullError):
        Outbox.open(file, settings(ballast_bytes=0))


def test_a_disk_that_fills_up_while_the_log_is_short_is_no_reason_to_wait(small_disk: Path) -> None:
    file = closed_store(small_disk, WITH_BALLAST)
    (small_disk / "other").unlink()
    outbox = Outbox.open(file, WITH_BALLAST)  # nothing is in the log but that it is in use
    until(lambda: outbox.stats().ballast)
    side(file, ".ballast").unlink()
    fill(small_disk)
    put_in_turn(outbox, 50, timeout=30)
    assert outbox.stats().disk_full
    outbox.close()


def test_control_a_log_without_blocks_of_its_own_stores_nothing_on_a_disk_that_fills_up(small_disk: Path) -> None:
    file = closed_store(small_disk, settings(ballast_bytes=0))
    (small_disk / "other").unlink()
    outbox = Outbox.open(file, settings(ballast_bytes=0))
    fill(small_disk)
    with pytest.raises(OutboxFullError):
        put_in_turn(outbox, 50, timeout=3)
    outbox.close()


def test_the_ballast_becomes_the_log_of_a_store_that_has_none(small_disk: Path) -> None:
    file = small_disk / "state" / "outbox.db"
    outbox = Outbox.open(file, WITH_BALLAST)
    until(lambda: outbox.stats().ballast)
    outbox.put([picture(n, 20_000) for n in range(50)])
    outbox.close()
    side(file, "-wal").unlink()  # as an earlier version left it
    fill(small_disk)
    inode = side(file, ".ballast").stat().st_ino
    outbox = Outbox.open(file, WITH_BALLAST)
    assert side(file, "-wal").stat().st_ino == inode
    assert not side(file, ".ballast").exists()
    assert outbox.put([event(1, "critical")], timeout=30)
    outbox.close()


def test_a_store_without_room_for_an_index_is_read_by_its_own_process_alone(small_disk: Path) -> None:
    file = closed_store(small_disk, WITH_BALLAST)
    side(file, "-shm").unlink(missing_ok=True)
    fill(small_disk)
    outbox = Outbox.open(file, WITH_BALLAST)
    outbox.put([event(1, "critical")], timeout=30)
    assert len(numbers(outbox, "critical")) >= 61
    look = [sys.executable, "-c", LOOK, str(file)]
    assert "locked" in subprocess.run(look, check=False, capture_output=True, text=True).stderr
    (small_disk / "other").unlink()
    outbox.close()
    outbox = Outbox.open(file, WITH_BALLAST)
    assert int(subprocess.run(look, check=True, capture_output=True, text=True).stdout) >= 61
    outbox.close()


def test_where_the_last_picture_is_not_enough_events_make_room_too(small_disk: Path) -> None:
    file = small_disk / "state" / "outbox.db"
    outbox = Outbox.open(file, WITH_BALLAST)
    outbox.put([picture(0, 10)])
    for n in range(10):
        outbox.put([event(100 * n + at) for at in range(100)])
    outbox.close()
    side(file, ".ballast").unlink(missing_ok=True)
    fill(small_disk)
    outbox = Outbox.open(file, WITH_BALLAST)
    outbox.put([picture(1, 100_000, "critical")], timeout=30)
    assert outbox.stats().classes["bulk"].evicted == 1
    assert outbox.stats().classes["event"].evicted > 0
    outbox.close()


def test_more_than_the_log_holds_at_once_is_stored_in_smaller_parts(small_disk: Path) -> None:
    file = closed_store(small_disk, WITH_BALLAST)
    outbox = Outbox.open(file, WITH_BALLAST)
    receipts: list[Receipt] = []
    for n in range(30):
        outbox.submit([picture(n, 60_000, "event")], receipts.extend)
    until(lambda: len(receipts) == 30, 60)
    assert [receipt.seq for receipt in receipts] == list(range(61, 91))
    outbox.close()


def damaged_and_full(place: Path) -> Path:
    """A store that is refused, on a disk without a free block and without its ballast."""
    file = closed_store(place, settings(ballast_bytes=0))
    with file.open("r+b") as stream:
        stream.write(b"garbage garbage")
    fill(place)
    return file


def test_a_damaged_store_on_a_full_disk_begins_as_failed_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    file = damaged_and_full(small_disk)
    outbox = Outbox.open(file, WITH_BALLAST, patient=True)
    stats = outbox.stats()
    assert (stats.failed, stats.epoch, {each.rows for each in stats.classes.values()}) == (True, "", {0})
    assert "no room" in str(stats.failure)
    assert (outbox.acknowledge("event", "ab" * 8, 60), outbox.follow("event", "ab" * 8, 60)) == (0, False)
    for asked in (outbox.heads, lambda: outbox.epoch, lambda: outbox.read("event", 0, 1, 1)):
        with pytest.raises(OutboxError, match="not opened yet"):
            asked()
    with pytest.raises(OutboxError, match="has failed"):
        outbox.submit([event(1)])
    with pytest.raises(StoreFullError):
        outbox.reopen()
    (small_disk / "other").unlink()
    outbox.reopen()
    assert outbox.put([event(1)])[0].seq == 1
    notices = [decode(row.body, Notice) for row in rows(outbox, "critical") if row.kind == "notice"]
    assert sorted(notice.code for notice in notices) == ["store_failed", "store_quarantined"]
    assert (outbox.stats().failed, outbox.stats().quarantined) == (False, 1)
    outbox.close()


def test_an_outbox_that_never_opened_can_be_closed_and_leaves_the_notice_to_the_next(small_disk: Path) -> None:
    file = damaged_and_full(small_disk)
    Outbox.open(file, WITH_BALLAST, patient=True).close()
    (small_disk / "other").unlink()
    outbox = Outbox.open(file, WITH_BALLAST)  # the lock is free
    assert [decode(row.body, Notice).code for row in rows(outbox, "critical")] == ["store_quarantined"]
    outbox.close()


def test_control_without_patience_a_damaged_store_on_a_full_disk_does_not_open(small_disk: Path) -> None:
    with pytest.raises(StoreFullError):
        Outbox.open(damaged_and_full(small_disk), WITH_BALLAST)


def test_a_damaged_store_on_a_full_disk_is_replaced_in_the_room_of_the_ballast(small_disk: Path) -> None:
    file = small_disk / "state" / "outbox.db"
    outbox = Outbox.open(file, WITH_BALLAST)
    until(lambda: outbox.stats().ballast)
    outbox.put([event(1)])
    outbox.close()
    with file.open("r+b") as stream:
        stream.write(b"garbage garbage")
    fill(small_disk)
    outbox = Outbox.open(file, WITH_BALLAST)
    assert outbox.put([event(1)], timeout=30)[0].seq == 1
    assert outbox.stats().quarantined == 1
    outbox.close()


def test_control_without_quota_and_ballast_even_a_deletion_fails(small_disk: Path) -> None:
    db = sqlite3.connect(small_disk / "plain.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)")
    db.executemany("INSERT INTO t (body) VALUES (?)", [(b"x" * 500,)] * 2000)
    fill(small_disk)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        db.executemany("INSERT INTO t (body) VALUES (?)", [(b"x" * 500,)] * 20_000)
    fill(small_disk)
    failures = 0
    for _ in range(50):
        try:
            db.execute("DELETE FROM t WHERE seq IN (SELECT seq FROM t ORDER BY seq LIMIT 100)")
            db.executemany("INSERT INTO t (body) VALUES (?)", [(b"x" * 500,)] * 100)
        except sqlite3.OperationalError as error:
            failures += error.sqlite_errorcode == sqlite3.SQLITE_FULL
    assert failures > 0
    db.close()


def test_the_page_quota_holds_the_file_down_whatever_the_disk_has(tmp_path: Path) -> None:
    tight = settings(
        critical=ClassQuota(max_bytes=65536, on_full="refuse"),
        event=ClassQuota(max_bytes=65536),
        measure=ClassQuota(max_bytes=65536),
        bulk=ClassQuota(max_bytes=MIB),
    )
    outbox = Outbox.open(tmp_path / "outbox.db", tight)
    for n in range(500):
        outbox.put([picture(n, 30_000), event(n)])
    outbox.close()
    assert (tmp_path / "outbox.db").stat().st_size < MIB + 3 * 65536 + 2 * MIB
