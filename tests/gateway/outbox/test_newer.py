"""A store that a newer program has made: the older one of the other slot goes on with it, or leaves it alone."""

import sqlite3
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from gateway.errors import OutboxError
from gateway.outbox import damage
from gateway.outbox.faults import DamagedStoreError, NewerStoreError
from gateway.outbox.inspect import status
from gateway.outbox.quarantine import quarantined_name
from gateway.outbox.schema import MIGRATIONS, READABLE_FROM, READABLE_KEY, TABLES
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import event, numbers, opened, settings, until

NEWER: Final = len(MIGRATIONS) + 1
ADDITIONS: Final = (
    *(f"ALTER TABLE {table} ADD COLUMN priority INTEGER NOT NULL DEFAULT 0" for table in TABLES.values()),
    "CREATE TABLE records_alarm (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL)",
    "INSERT INTO totals VALUES ('alarm', 0, 0)",
    "CREATE TABLE routes (name TEXT PRIMARY KEY)",
)
"""What a migration may do: tables, columns with defaults, another class."""


def migrated(file: Path, readable_from: int | None) -> str:
    """Leave a store with five rows as the newer program does; return its epoch."""
    with opened(file) as outbox:
        outbox.put([event(number) for number in range(1, 6)])
        epoch = outbox.epoch
    db = sqlite3.connect(file, isolation_level=None)
    for statement in ADDITIONS:
        db.execute(statement)
    db.execute("DELETE FROM meta WHERE name = ?", (READABLE_KEY,))
    if readable_from is not None:
        db.execute("INSERT INTO meta VALUES (?, ?)", (READABLE_KEY, str(readable_from)))
    db.execute(f"PRAGMA user_version = {NEWER}")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return epoch


def version_of(file: Path) -> int:
    db = sqlite3.connect(file)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(version)


def test_a_newer_store_that_says_so_is_gone_on_with_and_stays_of_its_version(file: Path) -> None:
    epoch = migrated(file, READABLE_FROM)
    with capture_logs() as logs, opened(file) as outbox:
        assert outbox.epoch == epoch
        assert numbers(outbox, "event") == [1, 2, 3, 4, 5]
        assert outbox.put([event(6)])[0].seq == 6
        outbox.acknowledge("event", epoch, 3)
        until(lambda: numbers(outbox, "event") == [4, 5, 6])
    assert "store_is_newer" in [line["event"] for line in logs]
    assert version_of(file) == NEWER
    assert not quarantined_name(file).exists()


@pytest.mark.parametrize("readable_from", [NEWER, None])
def test_a_newer_store_that_must_not_be_written_to_is_left_alone_until_a_newer_program_comes(
    file: Path, readable_from: int | None
) -> None:
    epoch = migrated(file, readable_from)
    before = file.read_bytes()
    with pytest.raises(NewerStoreError, match="install that version again"):
        Outbox.open(file, settings())
    outbox = Outbox.open(file, settings(), patient=True)
    assert outbox.failed, "the gateway runs without it"
    with pytest.raises(OutboxError, match="newer version"):
        outbox.reopen()
    assert file.read_bytes() == before
    assert not quarantined_name(file).exists()
    with sqlite3.connect(file) as db:  # stands for the newer program
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (READABLE_KEY, str(READABLE_FROM)))
    db.close()
    outbox.reopen()
    assert outbox.epoch == epoch
    assert numbers(outbox, "event") == [1, 2, 3, 4, 5]
    outbox.close()


def test_control_taken_for_damage_its_records_are_not_delivered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = migrated(file, None)
    monkeypatch.setattr(damage, "NewerStoreError", DamagedStoreError)
    with opened(file) as outbox:
        assert outbox.epoch != epoch
        assert numbers(outbox, "event") == []
    assert quarantined_name(file).exists()


def test_a_technician_is_told_of_a_newer_store_what_to_do(file: Path) -> None:
    migrated(file, None)
    with pytest.raises(OutboxError, match="install that version again"):
        status(file)


def test_a_newer_store_without_the_tables_of_this_version_is_damaged(file: Path) -> None:
    epoch = migrated(file, READABLE_FROM)
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE records_bulk")
    db.close()
    with opened(file) as outbox:
        assert outbox.epoch != epoch


def test_every_store_says_from_which_version_on_it_can_be_read(file: Path) -> None:
    with opened(file):
        pass
    with sqlite3.connect(file) as db:  # as one that was made before stores said it
        db.execute("DELETE FROM meta WHERE name = ?", (READABLE_KEY,))
    db.close()
    with opened(file) as outbox:
        assert outbox._generation.database.recall(READABLE_KEY) == str(READABLE_FROM)
    assert len(MIGRATIONS) >= READABLE_FROM
