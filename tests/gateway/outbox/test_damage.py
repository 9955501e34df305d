"""A damaged store never stops the gateway, never becomes memory, and never makes new rows look like old ones."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.outbox.damage import side
from gateway.outbox.opening import LOST_WAL_JUMP
from gateway.outbox.quarantine import quarantined_name
from gateway.outbox.store import Outbox
from gateway.wire.messages import Notice, decode
from tests.gateway.outbox.outbox_kit import event, numbers, opened, picture, rows, settings, until

Damage = Callable[[Path], object]


def closed_store(file: Path) -> str:
    """A store with 500 rows that was closed properly; returns its epoch."""
    with opened(file) as outbox:
        outbox.put([event(n) for n in range(500)])
        return outbox.epoch
    raise AssertionError


def killed_store(file: Path) -> str:
    """A store with 500 rows as a crash leaves it: the last ones in the WAL only."""
    outbox = Outbox.open(file.parent.with_name("original") / file.name, settings())
    outbox.put([event(n) for n in range(500)])
    shutil.copytree(outbox._file.parent, file.parent)
    outbox.close()
    assert side(file, "-wal").stat().st_size > 100_000
    return outbox.epoch


def sql(statement: str) -> Damage:
    def run(file: Path) -> None:
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute(statement)
        db.close()

    return run


def overwrite(file: Path, start: int, length: int, byte: bytes = b"\0") -> None:
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(byte * length)


def truncate(file: Path, size: int) -> None:
    with file.open("r+b") as stream:
        stream.truncate(size)


def replace_with_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: truncate(file, 0), id="empty"),
        pytest.param(lambda file: truncate(file, 50), id="header cut off"),
        pytest.param(lambda file: truncate(file, 4096), id="one page left"),
        pytest.param(lambda file: truncate(file, file.stat().st_size // 2), id="cut in half"),
        pytest.param(lambda file: truncate(file, file.stat().st_size - 1), id="one byte short"),
        pytest.param(lambda file: overwrite(file, 0, file.stat().st_size), id="all zeros"),
        pytest.param(lambda file: overwrite(file, 100, file.stat().st_size - 100), id="zeros after the header"),
        pytest.param(lambda file: overwrite(file, 0, 100, b"\xa5"), id="garbage header"),
        pytest.param(lambda file: overwrite(file, 16, 2, b"\x02"), id="another page size"),
        pytest.param(lambda file: overwrite(file, 100, 3996, b"\x5a"), id="garbage schema page"),
        pytest.param(lambda file: file.write_text("not a database\n" * 100), id="text"),
        pytest.param(sql("PRAGMA user_version = 2000000"), id="a version that no program makes"),
        pytest.param(sql("PRAGMA user_version = 0"), id="no version"),
        pytest.param(sql("PRAGMA application_id = 7"), id="database of something else"),
        pytest.param(sql("DROP TABLE records_bulk"), id="table missing"),
        pytest.param(sql("ALTER TABLE records_bulk RENAME COLUMN body TO corpse"), id="column missing"),
        pytest.param(sql("DELETE FROM totals WHERE class = 'bulk'"), id="books incomplete"),
        pytest.param(sql("DELETE FROM meta WHERE name = 'epoch'"), id="epoch missing"),
        pytest.param(replace_with_directory, id="a directory"),
    ],
)
def test_a_damaged_store_is_put_aside_and_a_new_epoch_says_so(file: Path, damage: Damage) -> None:
    epoch = closed_store(file)
    damage(file)
    told: list[Notice] = []
    outbox = Outbox.open(file, settings(), on_notice=told.append)
    try:
        assert outbox.epoch != epoch
        assert outbox.put([event(1)])[0].seq == 1
        (row,) = rows(outbox, "critical")
        assert row.kind == "notice"
        assert [decode(row.body, Notice)] == told
        assert (told[0].code, told[0].severity) == ("store_quarantined", "error")
        assert outbox.stats().quarantined == 1
        assert quarantined_name(file).exists()
    finally:
        outbox.close()
    with opened(file) as again:
        assert again.stats().quarantined == 0
        assert numbers(again, "event") == [1]


def test_the_last_three_damaged_stores_are_kept(file: Path) -> None:
    closed_store(file)
    for byte in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        overwrite(file, 0, 100, byte)
        with opened(file) as outbox:
            outbox.put([event(1)])
    aside = quarantined_name(file)
    assert [name.read_bytes()[:1] for name in (aside, side(aside, ".1"), side(aside, ".2"))] == [
        b"\x05",
        b"\x04",
        b"\x03",
    ]
    assert sorted(name.name for name in file.parent.iterdir()) == [
        "outbox.db",
        "outbox.db.lock",
        "outbox.db.quarantined",
        "outbox.db.quarantined.1",
        "outbox.db.quarantined.2",
    ]


def test_damage_found_by_a_reader_begins_a_new_store_while_running(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([picture(n, 3000) for n in range(400)])
        epoch = outbox.epoch
    overwrite(file, 200 * 4096, 100 * 4096, b"\xee")
    with opened(file) as outbox:
        assert outbox.epoch == epoch  # the ends are sound, and start-up reads no more
        after = 0
        while run := outbox.read("bulk", after, 10, 1 << 20):
            after = run.rows[-1].seq
        until(lambda: outbox.epoch != epoch)
        assert outbox.put([picture(1, 10)])[0].seq == 1
        assert [decode(row.body, Notice).code for row in rows(outbox, "critical")] == ["store_quarantined"]


def test_damage_found_by_the_writer_begins_a_new_store_and_loses_nothing_in_hand(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([event(n) for n in range(500)])
    overwrite(file, file.stat().st_size // 2, 4096 * 10, b"\xee")
    with opened(file) as outbox:
        epoch = outbox.epoch
        outbox.acknowledge("event", epoch, 499)
        until(lambda: outbox.epoch != epoch)
        receipts = outbox.put([event(1)])
        assert receipts[0].epoch == outbox.epoch


def test_a_store_that_was_not_closed_is_read_through_in_the_background(file: Path) -> None:
    epoch = killed_store(file)
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    wal = side(file, "-wal")
    assert not wal.exists()
    # A page in the middle that neither start-up nor the writer looks at.
    overwrite(file, file.stat().st_size // 2 // 4096 * 4096, 4096, b"\xee")
    wal.write_bytes(b"")
    with opened(file) as outbox:
        until(lambda: outbox.epoch != epoch)
        assert outbox.stats().quarantined == 1


# ---- the WAL -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda wal: wal.unlink(), id="deleted"),
        pytest.param(lambda wal: truncate(wal, 0), id="empty"),
        pytest.param(lambda wal: truncate(wal, 20), id="header cut off"),
        pytest.param(lambda wal: overwrite(wal, 0, wal.stat().st_size), id="all zeros"),
        pytest.param(lambda wal: overwrite(wal, 8, 8, b"\xff"), id="header garbage"),
    ],
)
def test_numbers_of_rows_lost_with_their_wal_are_not_given_again(file: Path, damage: Damage) -> None:
    epoch = killed_store(file)
    damage(side(file, "-wal"))
    with opened(file) as outbox:
        assert outbox.epoch == epoch
        assert numbers(outbox, "event") == []
        assert outbox.put([event(1)])[0].seq == LOST_WAL_JUMP + 1
        assert [decode(row.body, Notice).code for row in rows(outbox, "critical")] == ["store_rolled_back"]


def test_control_sqlite_alone_gives_them_again(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with sqlite3.connect(file, isolation_level=None) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        first = db.execute("INSERT INTO t (body) VALUES (x'')").lastrowid
        shutil.copy(file, tmp_path / "b.db")  # without its WAL
    db.close()
    with sqlite3.connect(tmp_path / "b.db", isolation_level=None) as db:
        assert db.execute("INSERT INTO t (body) VALUES (x'')").lastrowid == first
    db.close()


def test_a_killed_store_keeps_everything(file: Path) -> None:
    epoch = killed_store(file)
    with opened(file) as outbox:
        assert (outbox.epoch, numbers(outbox, "event")) == (epoch, list(range(1, 501)))
        assert outbox.put([event(1)])[0].seq == 501
        assert rows(outbox, "critical") == []


@pytest.mark.parametrize(
    "damage", [lambda shm: shm.unlink(), lambda shm: overwrite(shm, 0, shm.stat().st_size, b"\xcc")]
)
def test_the_shared_memory_file_does_not_matter(file: Path, damage: Damage) -> None:
    killed_store(file)
    damage(side(file, "-shm"))
    with opened(file) as outbox:
        assert numbers(outbox, "event") == list(range(1, 501))


def test_a_torn_tail_of_the_wal_is_a_transaction_that_never_was(file: Path) -> None:
    killed_store(file)
    wal = side(file, "-wal")
    with wal.open("ab") as stream:
        stream.write(b"\x99" * 1000)
    with opened(file) as outbox:
        assert numbers(outbox, "event") == list(range(1, 501))


def test_a_half_made_store_is_no_damage(file: Path) -> None:
    file.parent.mkdir()
    side(file, ".new").write_bytes(b"half")
    with opened(file) as outbox:
        assert outbox.put([event(1)])[0].seq == 1
        assert rows(outbox, "critical") == []
