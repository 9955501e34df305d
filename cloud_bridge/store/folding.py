"""What both databases write in the same way: rollups of the records that are there, and the time that is believed."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from cloud_bridge.believing import Belief, Step
from cloud_bridge.store import rolling
from cloud_bridge.store.base import Rolled
from cloud_bridge.store.reading import SqlReader
from cloud_bridge.store.writing import Transaction

T = TypeVar("T")


class Folding(SqlReader):
    """A store that rolls up what it holds. `_write` runs work in one durable transaction."""

    @abstractmethod
    def _write(self, work: Callable[[Any], T]) -> T:
        """Run work in one durable transaction."""

    def roll_up(self, limit: int) -> Rolled:
        """See Store.

        Reading and folding happen outside the transaction, so that ingest does not wait for them. Whoever moves the
        mark first has folded the slice; another process that did the same work throws it away.
        """
        ((through,),) = self._rows("SELECT through_id FROM rollup_state")
        horizon = self._horizon()
        if horizon <= through:
            return Rolled()
        rows = self._rows(rolling.SLICE, (through, horizon, limit))
        folded = [(gateway, kind, bytes(body)) for _, gateway, kind, body in rows if body is not None]
        buckets = rolling.fold(folded)
        reached = rows[-1][0] if len(rows) == limit else horizon

        def put(tx: Transaction) -> Rolled:
            # A stand-in may have given way to its record since it was read: then the slice is read again next time.
            if tx.rows(rolling.FOLDABLE, (through, reached)) != [(len(folded),)]:
                return Rolled()
            moved = tx.change("UPDATE rollup_state SET through_id = ? WHERE through_id = ?", (reached, through))
            if not moved:
                return Rolled()
            tx.change_many(rolling.UPSERT, rolling.rows_of(buckets))
            return Rolled(max(len(rows), 1), len(buckets))

        return self._write(put)

    def believed(self) -> Belief | None:
        """See Store."""
        rows = self._rows("SELECT at_ns, doubted_since_ns, doubted_ns, stepped, steps FROM believed_time")
        if not rows:
            return None
        at_ns, since_ns, doubted_ns, stepped, steps = rows[0]
        return Belief(at_ns, since_ns, doubted_ns, bool(stepped), msgspec.json.decode(steps, type=tuple[Step, ...]))

    def keep_belief(self, belief: Belief) -> None:
        """See Store."""
        self._write(
            lambda tx: tx.change(
                "INSERT INTO believed_time (one, at_ns, doubted_since_ns, doubted_ns, stepped, steps)"
                " VALUES (1, ?, ?, ?, ?, ?) ON CONFLICT (one) DO UPDATE SET at_ns = excluded.at_ns,"
                " doubted_since_ns = excluded.doubted_since_ns, doubted_ns = excluded.doubted_ns,"
                " stepped = excluded.stepped, steps = excluded.steps",
                (
                    *(belief.at_ns, belief.doubted_since_ns, belief.doubted_ns, int(belief.stepped)),
                    msgspec.json.encode(belief.steps).decode(),
                ),
            )
        )
