"""What retention removes, row by row. Marks are read from the spans, which nothing here touches."""

# ruff: noqa: S608  # the texts are put together from constants; values travel as parameters only

from cloud_bridge.store.base import Limits, Swept
from cloud_bridge.store.writing import Transaction
from gateway.wire.messages import CLASSES

EVERY_ID = 2**63 - 1


def rolled_through(tx: Transaction, limits: Limits) -> int:
    """Return the id up to which records may be removed."""
    if not limits.only_rolled:
        return EVERY_ID
    ((through,),) = tx.rows("SELECT through_id FROM rollup_state")
    return int(through)


def sweep(tx: Transaction, limits: Limits, limit: int) -> Swept:
    """Remove old rows of every table, at most about `limit` of each."""
    swept = Swept(records=sweep_records(tx, limits, limit, "stream_records"))
    return swept + sweep_others(tx, limits, limit)


def sweep_records(tx: Transaction, limits: Limits, limit: int, table: str) -> int:
    """Remove old records from the front of each stream; returns how many."""
    through = rolled_through(tx, limits)
    removed = 0
    # In the order in which those who write take them: else they could wait for each other in a circle.
    for stream, record_class in tx.rows("SELECT id, class FROM streams ORDER BY gateway, epoch, class"):
        if removed < limit and record_class in limits.before_ns:
            removed += _sweep_stream(tx, (table, stream), limits.before_ns[record_class], through, limit - removed)
    return removed


def _sweep_stream(tx: Transaction, place: tuple[str, int], before_ns: int, through: int, limit: int) -> int:
    table, stream = place
    old = 0
    last_seq = 0
    for seq, number, received_at_ns in tx.keys.oldest(tx, table, stream, limit):
        if received_at_ns >= before_ns or number > through:
            break
        old, last_seq = old + 1, seq
    if old:
        tx.keys.remove(tx, table, stream, last_seq)
        tx.change("DELETE FROM evidence WHERE stream = ? AND seq <= ?", (stream, last_seq))
        tx.change("UPDATE streams SET deleted = deleted + ? WHERE id = ?", (old, stream))
    return old


def sweep_others(tx: Transaction, limits: Limits, limit: int) -> Swept:
    """Remove old events, dead letters and rollups."""
    # 0 for a class that is kept for ever: its events are.
    events_before_ns = min(limits.before_ns.get("critical", 0), limits.before_ns.get("event", 0))
    events = tx.change(
        "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE updated_at_ns < ? ORDER BY updated_at_ns LIMIT ?)",
        (events_before_ns, limit),
    )
    return Swept(0, events, _sweep_letters(tx, limits, limit), _sweep_rollups(tx, limits, limit))


def _sweep_letters(tx: Transaction, limits: Limits, limit: int) -> int:
    """Remove old dead letters. Those that hold whole batches are kept at least as long as the records in them."""
    removed = _delete_letters(tx, "(epoch IS NOT NULL OR class IS NULL)", (), limits.dead_letters_before_ns, limit)
    for record_class, before_ns in sorted(limits.before_ns.items()):
        due_ns = min(before_ns, limits.dead_letters_before_ns)
        removed += _delete_letters(tx, "epoch IS NULL AND class = ?", (record_class,), due_ns, limit - removed)
    # A class that this version does not know has no records here, and no limit of its own.
    unknown = f"epoch IS NULL AND class NOT IN ({', '.join('?' * len(CLASSES))})"
    return removed + _delete_letters(tx, unknown, CLASSES, limits.dead_letters_before_ns, limit - removed)


def _delete_letters(tx: Transaction, which: str, values: tuple[str, ...], before_ns: int, limit: int) -> int:
    return tx.change(
        "DELETE FROM dead_letters WHERE id IN"
        f" (SELECT id FROM dead_letters WHERE {which} AND last_at_ns < ? ORDER BY last_at_ns LIMIT ?)",
        (*values, before_ns, max(0, limit)),
    )


def _sweep_rollups(tx: Transaction, limits: Limits, limit: int) -> int:
    removed = 0
    for grain, before_s in limits.rollups_before_s.items():
        while removed < limit:
            ((oldest,),) = tx.rows("SELECT min(start_s) FROM rollups WHERE grain = ?", (grain,))
            if oldest is None or oldest + grain > before_s:
                break
            removed += tx.change("DELETE FROM rollups WHERE grain = ? AND start_s = ?", (grain, oldest))
    return removed
