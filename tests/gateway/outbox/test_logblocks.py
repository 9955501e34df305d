"""The log has its blocks before anybody needs them, and keeps them."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from gateway.outbox.ballast import Ballast
from gateway.outbox.damage import side
from gateway.outbox.inspect import status
from gateway.outbox.logblocks import MOST_BYTES, LogBlocks, is_blank
from tests.gateway.outbox.outbox_kit import MIB, event, numbers, opened, picture, settings, until

WITH_BALLAST = settings(ballast_bytes=MIB)


def blocks_of(name: Path) -> int:
    return name.stat().st_blocks * 512


def test_the_log_has_its_blocks_while_the_store_is_open_and_while_it_is_closed(file: Path) -> None:
    wal = side(file, "-wal")
    with opened(file, WITH_BALLAST) as outbox:
        assert blocks_of(wal) >= MIB
        outbox.put([picture(n, 100_000) for n in range(20)])
        until(lambda: outbox.stats().wal_bytes > MIB)
    assert wal.stat().st_size == MIB
    assert blocks_of(wal) >= MIB
    assert is_blank(wal)
    with opened(file, WITH_BALLAST) as outbox:
        assert len(numbers(outbox, "bulk")) == 20


def test_control_without_a_ballast_nothing_is_left_of_the_log(file: Path) -> None:
    with opened(file, settings()) as outbox:
        outbox.put([event(1)])
    assert not side(file, "-wal").exists()


def test_a_ballast_of_any_size_makes_no_endless_log(tmp_path: Path) -> None:
    blocks = LogBlocks(tmp_path / "outbox.db", Ballast(tmp_path / "outbox.db", 16 * MOST_BYTES))
    assert blocks.claim()
    assert side(tmp_path / "outbox.db", "-wal").stat().st_size == MOST_BYTES


def test_a_log_in_use_is_made_longer_and_loses_nothing(file: Path) -> None:
    with opened(file, settings()) as outbox:
        outbox.put([event(1)])
        assert LogBlocks(file, Ballast(file, MIB)).extend()
        assert side(file, "-wal").stat().st_size == MIB
        outbox.put([event(2)])
        killed = file.with_name("killed.db")
        for end in ("", "-wal"):
            shutil.copyfile(side(file, end), side(killed, end))
    with opened(killed) as outbox:
        assert numbers(outbox, "event") == [1, 2]


def test_an_older_copy_that_is_put_in_place_of_a_closed_store_is_what_it_was(file: Path) -> None:
    with opened(file, WITH_BALLAST) as outbox:
        outbox.put([event(1)])
    shutil.copyfile(file, file.with_name("older.db"))
    with opened(file, WITH_BALLAST) as outbox:
        outbox.put([event(2)])
    shutil.copyfile(file.with_name("older.db"), file)
    with opened(file, WITH_BALLAST) as outbox:
        assert numbers(outbox, "event") == [1]


def test_control_a_log_that_is_kept_with_its_contents_is_laid_over_the_older_copy(file: Path) -> None:
    with opened(file, WITH_BALLAST) as outbox:
        outbox.put([event(1)])
    older, newer_log = file.with_name("older.db"), file.with_name("older.db-wal")
    shutil.copyfile(file, older)
    with opened(file, WITH_BALLAST) as outbox:
        outbox.put([event(2)])
        shutil.copyfile(side(file, "-wal"), newer_log)
    with closing(sqlite3.connect(older)) as db:
        assert db.execute("SELECT seq FROM records_event ORDER BY seq").fetchall() == [(1,), (2,)]


def test_a_closed_store_can_be_looked_at(file: Path) -> None:
    with opened(file, WITH_BALLAST) as outbox:
        outbox.put([event(1), event(2)])
    assert status(file).classes["event"].rows == 2
