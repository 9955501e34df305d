"""Tables and what rows cost."""

import re
import sqlite3
from pathlib import Path

import pytest

from gateway.outbox.schema import (
    APPLICATION_ID,
    MIGRATIONS,
    READABLE_FROM,
    TABLES,
    insert_statement,
    migrate,
    row_disk_bytes,
)
from tests.gateway.outbox.test_newer import ADDITIONS


def numbers_after_draining(create: str) -> list[int]:
    db = sqlite3.connect(":memory:")
    db.execute(create)
    given = []
    for _ in range(2):
        given.append(db.execute("INSERT INTO t (body) VALUES (x'')").lastrowid or 0)
        db.execute("DELETE FROM t")
    return given


def test_a_number_is_never_given_again() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    for table in TABLES.values():
        row = "(disk_bytes, stored_ms, recorded_at_ns, kind, body, blob) VALUES (1, 1, 1, 'event', x'', x'')"
        first = db.execute(f"INSERT INTO {table} {row}").lastrowid
        db.execute(f"DELETE FROM {table}")
        assert (first, db.execute(f"INSERT INTO {table} {row}").lastrowid) == (1, 2)


def test_control_a_plain_primary_key_gives_it_again() -> None:
    assert numbers_after_draining("CREATE TABLE t (seq INTEGER PRIMARY KEY, body BLOB)") == [1, 1]
    assert numbers_after_draining("CREATE TABLE t (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)") == [1, 2]


def test_migrations_are_applied_once() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    migrate(db)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert 0 < APPLICATION_ID < 2**31


def only_adds(statement: str) -> bool:
    """Tell whether a program of the version before can go on with what a statement leaves."""
    return re.match(r"\s*(CREATE (TABLE|INDEX)|ALTER TABLE \w+ ADD COLUMN|INSERT INTO)\b", statement) is not None


def test_migrations_only_add_to_what_the_other_slot_knows() -> None:
    later = [statement for migration in MIGRATIONS[READABLE_FROM:] for statement in migration]
    assert all(map(only_adds, later))
    assert all(map(only_adds, ADDITIONS))
    assert not only_adds("ALTER TABLE records_bulk RENAME COLUMN body TO corpse")
    assert not only_adds("DROP TABLE records_bulk")


@pytest.mark.parametrize("size", [0, 80, 400, 700, 1300, 1900, 2100, 3900, 4010, 4040, 4500, 9000, 50_000])
def test_the_cost_of_a_row_is_what_it_takes_on_disk(tmp_path: Path, size: int) -> None:
    db = sqlite3.connect(tmp_path / "db", isolation_level=None)
    migrate(db)
    (empty,) = db.execute("PRAGMA page_count").fetchone()
    count = 256
    rows = [(n, 5, 1_000_000, 1_790_000_000_000_000_000, "event", bytes(size), b"") for n in range(1, count + 1)]
    db.execute(insert_statement("bulk", count), [value for row in rows for value in row])
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    claimed = count * row_disk_bytes(len("event") + size)
    taken = (pages - empty) * 4096
    assert 0.95 * taken - 8192 <= claimed <= 1.25 * taken + 8192
