"""One transaction in a SQLite store: what `writing` asks of a database, in SQLite's words."""

import itertools
import re
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from cloud_bridge.errors import StoreError
from cloud_bridge.store.keys import RunKeys, add_runs, buckets_in, runs_in
from cloud_bridge.store.writing import Range, SqlRow
from cloud_bridge.values import StreamKey

_OVER: Final = (
    " FROM {table} WHERE stream = ? AND first <= ?"
    " AND first >= coalesce((SELECT max(first) FROM {table} WHERE stream = ? AND first <= ?), 0) AND last >= ?"
)


_ROWS_AT_ONCE: Final = (400, 80, 16)
"""So many rows in one statement: 400 of 11 columns are far below the 32,766 parameters that SQLite takes.

For each step of a statement Python lets go of its lock, and waits up to 5 ms to have it back while the threads beside
it decode; with one step for each row that was most of the time of an ingest with two workers.
"""
_INSERTED: Final = re.compile(r"VALUES (\([?, ]+\))")
_INSERT_RECORD: Final = (
    "INSERT INTO stream_records (stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body, blob)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


_NEXT_ID: Final = (
    "SELECT 1 + max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'stream_records'), 0),"
    " coalesce((SELECT max(id) FROM stream_records), 0))"
)


@lru_cache(maxsize=64)
def _for_rows(sql: str, rows: int) -> str:
    """Return an INSERT of one row as one of several; "" for another statement."""
    found = _INSERTED.search(sql)
    return "" if found is None else f"{sql[: found.end()]}{f', {found[1]}' * (rows - 1)}{sql[found.end() :]}"


class SqliteTransaction:
    """See writing.Transaction. `streams` outlives it; it is emptied when a transaction is rolled back."""

    keys = RunKeys()

    def __init__(self, connection: sqlite3.Connection, streams: dict[StreamKey, int]) -> None:
        self._connection = connection
        self._streams = streams

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[SqlRow]:
        return self._connection.execute(sql, parameters).fetchall()

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(sql, parameters).rowcount

    def change_many(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        self._change_each(sql, parameters)

    def open_streams(self, keys: Sequence[StreamKey]) -> dict[StreamKey, int]:
        for key in keys:
            if key not in self._streams:
                self._connection.execute(
                    "INSERT INTO streams (gateway, epoch, class) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", key
                )
                (found,) = self.rows("SELECT id FROM streams WHERE gateway = ? AND epoch = ? AND class = ?", key)
                self._streams[key] = found[0]
        return {key: self._streams[key] for key in keys}

    def spans_over(self, ranges: Sequence[Range]) -> list[SqlRow]:
        return self._over("SELECT stream, first, last" + _OVER.format(table="stream_spans"), ranges)

    def gaps_over(self, ranges: Sequence[Range]) -> list[SqlRow]:
        return self._over("SELECT stream, first, last, source, reason" + _OVER.format(table="stream_gaps"), ranges)

    def _over(self, sql: str, ranges: Sequence[Range]) -> list[SqlRow]:
        execute = self._connection.execute
        found: list[SqlRow] = []
        for stream, first, last in ranges:
            found.extend(execute(sql, (stream, last, stream, first, first)))
        return found

    def insert_records(self, rows: Sequence[SqlRow]) -> int:
        # AUTOINCREMENT gives the ids in order from here on, whatever was removed, and nobody else writes meanwhile.
        ((next_id,),) = self.rows(_NEXT_ID)
        add_runs(self, runs_in(rows, next_id))  # only confirms what the spans have told already
        self._change_each(
            "INSERT INTO line_buckets (stream, kind, pipeline, bucket) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            list(buckets_in(rows, next_id)),
        )
        inserted = self._change_each(_INSERT_RECORD, rows)
        if self.rows(_NEXT_ID) != [(next_id + len(rows),)]:
            raise StoreError(f"the ids from {next_id} on were not given in order; nothing was stored")
        return inserted

    def _change_each(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        changed = at = 0
        for count in _ROWS_AT_ONCE:
            many = _for_rows(sql, count) if len(rows) - at >= count else ""
            while many and len(rows) - at >= count:
                values = list(itertools.chain.from_iterable(rows[at : at + count]))
                changed += self._connection.execute(many, values).rowcount
                at += count
        if at < len(rows):
            changed += self._connection.executemany(sql, rows[at:]).rowcount
        return changed
