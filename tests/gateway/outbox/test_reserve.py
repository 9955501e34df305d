"""The file has blocks for everything that is committed."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from gateway.outbox.damage import side
from gateway.outbox.faults import StoreFullError
from gateway.outbox.reserve import AHEAD_BYTES, Reserve
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import numbers, opened, picture, settings


def test_blocks_are_taken_ahead(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    reserve = Reserve(file)
    reserve.grow_to(1)
    assert file.stat().st_size == 4096
    reserve.grow_to(2)
    assert file.stat().st_size == 8192 + AHEAD_BYTES
    assert file.stat().st_blocks * 512 >= 8192 + AHEAD_BYTES
    reserve.close()
    reserve.close()


def test_more_than_the_disk_has_is_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    reserve = Reserve(file)
    with pytest.raises(StoreFullError):
        reserve.grow_to(1 << 40)
    reserve.close()


def test_the_blocks_of_a_commit_are_there_before_it_and_a_crash_leaves_a_sound_file(file: Path, tmp_path: Path) -> None:
    outbox = Outbox.open(file, settings())
    outbox.put([picture(n, 10_000) for n in range(50)])
    assert file.stat().st_size > 500_000
    killed = tmp_path / "killed"
    shutil.copytree(file.parent, killed)
    outbox.close()
    assert side(killed / file.name, "-wal").stat().st_size > 500_000
    with sqlite3.connect(killed / file.name) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM records_bulk").fetchone() == (50,)
    db.close()


def test_the_file_is_cut_to_size_when_it_is_closed(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([picture(n, 10_000) for n in range(50)])
    with sqlite3.connect(file) as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.close()
    assert file.stat().st_size == pages * 4096
    with opened(file) as outbox:
        assert len(numbers(outbox, "bulk")) == 50
