"""The negative control: a bridge that stores whatever comes, without a key that would tell it what it has already."""

from collections.abc import Sequence

from cloud_bridge import cli
from cloud_bridge.store import writing
from cloud_bridge.store.ledger import StreamLedger
from cloud_bridge.store.sqlitetransaction import SqliteTransaction
from cloud_bridge.store.writing import SqlRow


class ForgetfulLedger(StreamLedger):
    """Keeps the marks, and takes every record for a new one."""

    def receive(self, seqs: Sequence[int]) -> None:
        super().receive(seqs)


def _insert(self: SqliteTransaction, rows: Sequence[SqlRow]) -> int:
    # Without the runs of numbers, which would refuse one that is there.
    return self._connection.executemany(
        "INSERT INTO stream_records (stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body, blob)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    ).rowcount


if __name__ == "__main__":
    # The parts under test, replaced on purpose.
    vars(writing)["StreamLedger"] = ForgetfulLedger
    SqliteTransaction.insert_records = _insert  # type: ignore[method-assign]
    cli.main()
