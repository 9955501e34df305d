"""Something else takes the last block of the disk: what matters is kept, the rest is given up by name, or waits."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gateway.outbox.store import Outbox
from gateway.values import Receipt
from tests.chaos.experiment import Experiment
from tests.chaos.storage.campaign import ROOT, cut_everywhere, outbox_judge, record, victim_command
from tests.chaos.storage.conftest import MakeDisk
from tests.chaos.storage.cuts import DiskLog
from tests.chaos.storage.fusedisk import FuseDisk
from tests.chaos.storage.outbox_oracle import promises_of
from tests.gateway.outbox.outbox_kit import MIB, event, evictions, numbers, picture, settings, until
from tests.simulators.waiting import wait_for


def fill(place: Path) -> Path:
    """Take every block that is left; may be called again."""
    name = place / "other"
    with name.open("ab", buffering=0) as stream:
        for size in (256 * 1024, 4096):
            try:
                while stream.write(b"x" * size):
                    pass
            except OSError:
                continue
        os.fsync(stream.fileno())
    return name


@contextmanager
def greedy(place: Path) -> Iterator[None]:
    """Another program, which takes whatever becomes free a few times a second, until the block ends."""
    program = (
        "import os, sys, time\n"
        "with open(sys.argv[1], 'ab', buffering=0) as stream:\n"
        "    while True:\n"
        "        for size in (65536, 4096):\n"
        "            try:\n"
        "                while stream.write(b'x' * size): pass\n"
        "            except OSError: pass\n"
        "        time.sleep(0.2)\n"
    )
    other = subprocess.Popen(["setpriv", "--pdeathsig=KILL", "--", "python3", "-c", program, str(place / "other")])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def test_c11_on_a_full_disk_no_power_cut_loses_an_acknowledged_record(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk(size_mib=16)
    record(disk, "outbox_victim", "state/outbox.db", seed=experiment.seed, rounds=1200, ends=("close",))
    for life in range(1, 3):
        command = victim_command(disk, "outbox_victim", "state/outbox.db", str(experiment.seed + life), "0", "stay")
        with greedy(disk.mountpoint):
            wait_for(lambda: os.statvfs(disk.mountpoint).f_bavail == 0, seconds=20, what="the disk is full")
            before = disk.marked("r")
            with (experiment.directory / f"victim-{life}.log").open("wb") as log:
                victim = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            try:
                wait_for(
                    lambda before=before, victim=victim: victim.poll() is not None or disk.marked("r") > before + 100,  # type: ignore[misc]
                    seconds=40,
                    what="records are stored at 100 %",
                )
                assert victim.poll() is None
            finally:
                victim.kill()
                victim.wait()
    disk.close()
    assert promises_of(DiskLog(disk.log).marks()).failures == 0, "a full disk is no I/O error"
    outcome = cut_everywhere(experiment, disk, outbox_judge, experiment.scaled(30, 600))
    assert outcome.clean == outcome.points, outcome.first_fault


def test_c11_critical_records_are_kept_or_refused_and_everything_goes_on_by_itself(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk(size_mib=16)
    outbox = Outbox.open(disk.mountpoint / "state" / "outbox.db", settings(ballast_bytes=MIB))
    until(lambda: outbox.stats().ballast)
    for number in range(40):
        outbox.put([picture(number, 20_000), event(number), event(number, "critical")])
    receipts: list[Receipt] = []
    with greedy(disk.mountpoint):
        wait_for(lambda: os.statvfs(disk.mountpoint).f_bavail == 0, seconds=20, what="the disk is full")
        handed_over = 0
        while outbox.stats().queued_entries < 500:  # evicts bulk, then event; then critical must wait
            outbox.submit([event(handed_over, "critical") for _ in range(50)], receipts.extend)
            handed_over += 50
            until(lambda: outbox.stats().queued_entries == 0 or outbox.stats().disk_full, 30)
        assert outbox.stats().disk_full
        assert outbox.stats().classes["critical"].evicted == 0
        assert {record.record_class for record in evictions(outbox)} <= {"bulk", "event", "measure"}
        assert not outbox.failed
    (disk.mountpoint / "other").unlink()
    until(lambda: len(receipts) == handed_over, 40)
    until(lambda: not outbox.stats().disk_full and outbox.stats().ballast, 20)
    assert [receipt.seq for receipt in receipts] == sorted(receipt.seq for receipt in receipts)
    held = numbers(outbox, "critical")
    assert set(held) >= {receipt.seq for receipt in receipts}
    outbox.close()


def drop_the_oldest(db: sqlite3.Connection, place: Path) -> None:
    """What a plain queue does when it is full."""
    began = time.monotonic()
    while time.monotonic() - began < 20:
        db.execute("DELETE FROM t WHERE seq IN (SELECT seq FROM t ORDER BY seq LIMIT 100)")
        db.executemany("INSERT INTO t (body) VALUES (?)", [(b"x" * 500,)] * 100)
        fill(place)


def test_c11_control_a_plain_queue_that_drops_the_oldest_cannot_even_delete(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk: FuseDisk = fuse_disk(size_mib=16)
    with closing(sqlite3.connect(disk.mountpoint / "plain.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)")
        db.executemany("INSERT INTO t (body) VALUES (?)", [(b"x" * 500,)] * 2000)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fill(disk.mountpoint)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            drop_the_oldest(db, disk.mountpoint)
