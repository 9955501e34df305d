"""How the records of a stream are found by their numbers.

PostgreSQL has an index of streams and numbers. In SQLite such an index would take a place in the middle of its tree
for every record: each arrival changes full pages, and more of them the larger the store is. There the table
`stream_runs` says instead from which id on the numbers of a stream stand in a row: one row for each arrival, or fewer.
Records are only ever removed from the front of a stream, so a run stays one.
"""

# ruff: noqa: S608  # the texts are put together from constants; values travel as parameters only

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol

from cloud_bridge.errors import StoreRefusedError

SHIFT: Final = 18
"""Ids that are equal without their last so many bits share a bucket of SQLite's index of lines."""

_LINE: Final = itemgetter(0, 2, 3)
_IN_RANGE: Final = (
    "u.stream = ? AND u.first <= ? AND u.first >="
    " coalesce((SELECT max(first) FROM stream_runs WHERE stream = ? AND first <= ?), 0)"
)


class Changes(Protocol):
    """What of a transaction is needed here."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query."""
        ...

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it changed."""
        ...


class Keys:
    """Conditions on records, which are known as `r`: by an index of stream and number."""

    one = "r.stream = ? AND r.seq = ?"
    """The record of a number; its values are those of `place`."""
    some = "r.stream = ? AND r.seq BETWEEN ? AND ?"
    """The records of some numbers; its values are those of `range`."""
    present = "SELECT stream, count(*) FROM stream_records GROUP BY stream"
    """How many records of each stream can be found."""

    def place(self, stream: int, seq: int) -> tuple[int, ...]:
        """Return the values of `one`."""
        return (stream, seq)

    def range(self, stream: int, first: int, last: int) -> tuple[int, ...]:
        """Return the values of `some`, for the numbers from `first` to `last`."""
        return (stream, first, last)

    def joined(self, record: str, other: str) -> str:
        """Join records, under one name, with what has the columns `stream` and `seq`, under another."""
        return f"{record}.stream = {other}.stream AND {record}.seq = {other}.seq"

    def oldest(self, tx: Changes, table: str, stream: int, limit: int) -> list[tuple[Any, ...]]:
        """Return (seq, id, received_at_ns) of the lowest numbers of a stream."""
        return tx.rows(
            f"SELECT seq, id, received_at_ns FROM {table} WHERE stream = ? ORDER BY seq LIMIT ?", (stream, limit)
        )

    def remove(self, tx: Changes, table: str, stream: int, last: int) -> None:
        """Remove the records of a stream up to a number."""
        tx.change(f"DELETE FROM {table} WHERE stream = ? AND seq <= ?", (stream, last))


class Run(NamedTuple):
    """Numbers of a stream that stand in a row: `first` has the id `first_id`, and so on."""

    stream: int
    first: int
    last: int
    first_id: int


class RunKeys(Keys):
    """The same by runs. What a run leads to is looked at, so a wrong one finds nothing rather than another record."""

    one = (
        "r.id = (SELECT u.first_id - u.first + ? FROM stream_runs u WHERE u.stream = ? AND u.first <= ?"
        " ORDER BY u.first DESC LIMIT 1) AND r.stream = ? AND r.seq = ?"
    )
    some = (
        "r.id IN (SELECT i.id FROM stream_runs u CROSS JOIN stream_records i ON i.id BETWEEN"
        " u.first_id - u.first + max(u.first, ?) AND u.first_id - u.first + min(u.last, ?)"
        f" WHERE {_IN_RANGE}) AND r.stream = ? AND r.seq BETWEEN ? AND ?"
    )
    present = (
        "SELECT u.stream, count(*) FROM stream_runs u CROSS JOIN stream_records r"
        " ON r.id BETWEEN u.first_id AND u.first_id - u.first + u.last"
        " WHERE r.stream = u.stream AND r.seq = r.id - u.first_id + u.first GROUP BY u.stream"
    )

    def place(self, stream: int, seq: int) -> tuple[int, ...]:
        """See Keys."""
        return (seq, stream, seq, stream, seq)

    def range(self, stream: int, first: int, last: int) -> tuple[int, ...]:
        """See Keys."""
        return (first, last, stream, last, stream, first, stream, first, last)

    def joined(self, record: str, other: str) -> str:
        """See Keys."""
        by_run = (
            f"{record}.id = (SELECT u.first_id - u.first + {other}.seq FROM stream_runs u"
            f" WHERE u.stream = {other}.stream AND u.first <= {other}.seq ORDER BY u.first DESC LIMIT 1)"
        )
        return f"{by_run} AND {super().joined(record, other)}"

    def oldest(self, tx: Changes, table: str, stream: int, limit: int) -> list[tuple[Any, ...]]:
        """See Keys."""
        return tx.rows(
            f"SELECT r.seq, r.id, r.received_at_ns FROM stream_runs u CROSS JOIN {table} r"
            " ON r.id BETWEEN u.first_id AND u.first_id - u.first + u.last"
            " WHERE u.stream = ? ORDER BY u.first, r.id LIMIT ?",
            (stream, limit),
        )

    def remove(self, tx: Changes, table: str, stream: int, last: int) -> None:
        """See Keys. The runs go with their records, and so do the buckets in which the stream has none left."""
        tx.change(
            f"DELETE FROM {table} WHERE id IN (SELECT r.id FROM stream_runs u CROSS JOIN {table} r"
            " ON r.id BETWEEN u.first_id AND u.first_id - u.first + min(u.last, ?)"
            " WHERE u.stream = ? AND u.first <= ?)",
            (last, stream, last),
        )
        tx.change("DELETE FROM stream_runs WHERE stream = ? AND first <= ? AND last <= ?", (stream, last, last))
        tx.change(
            "UPDATE stream_runs SET first_id = first_id - first + ?, first = ? WHERE stream = ? AND first <= ?",
            (last + 1, last + 1, stream, last),
        )
        tx.change(
            "DELETE FROM line_buckets WHERE stream = ?1 AND bucket <"
            f" coalesce((SELECT min(first_id) FROM stream_runs WHERE stream = ?1) >> {SHIFT}, 9223372036854775807)",
            (stream,),
        )


def add_runs(tx: Changes, runs: Iterable[Run]) -> None:
    """Note where new records stand; one that goes on where the one before it ends, in numbers and ids, makes it longer.

    Raises:
        StoreRefusedError: a stream has one of the numbers already, whatever its spans say.
    """
    for run in runs:
        before = tx.rows(
            "SELECT first, last, first_id FROM stream_runs WHERE stream = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            (run.stream, run.last),
        )
        if before:
            ((first, last, first_id),) = before
            if last >= run.first:
                raise StoreRefusedError(
                    f"number {max(first, run.first)} of stream {run.stream} is stored already, although its spans do"
                    " not know it: `cloud-bridge store check` tells more"
                )
            if last + 1 == run.first and first_id - first + run.first == run.first_id:
                tx.change(
                    "UPDATE stream_runs SET last = ? WHERE stream = ? AND first = ?", (run.last, run.stream, first)
                )
                continue
        tx.change("INSERT INTO stream_runs (stream, first, last, first_id) VALUES (?, ?, ?, ?)", run)


def runs_in(rows: Sequence[tuple[Any, ...]], next_id: int) -> Iterator[Run]:
    """Return the runs of new rows, which begin with their stream and number; their ids go up by one from `next_id`."""
    begin = 0
    stream = expected = 0
    for at, (of, seq, *_) in enumerate(rows):
        if seq != expected or of != stream:
            if at:
                yield Run(stream, rows[begin][1], expected - 1, next_id + begin)
            begin, stream, expected = at, of, seq
        expected += 1
    if rows:
        yield Run(stream, rows[begin][1], expected - 1, next_id + begin)


def buckets_in(rows: Sequence[tuple[Any, ...]], next_id: int) -> Iterator[tuple[int, str, str, int]]:
    """Return (stream, kind, pipeline, bucket) of new rows, whose ids go up by one from `next_id`."""
    begin = 0
    while begin < len(rows):
        bucket = next_id + begin >> SHIFT
        end = (bucket + 1 << SHIFT) - next_id
        lines = set(map(_LINE, rows[begin:end]))
        yield from sorted((stream, kind, pipeline or "", bucket) for stream, kind, pipeline in lines)
        begin = end
