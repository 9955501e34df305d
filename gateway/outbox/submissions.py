"""The producers' side of the outbox: entries become rows of one transaction, and callers wait for it to be durable."""

import queue
import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway.errors import OutboxError, OutboxFullError
from gateway.outbox.evictions import row_of
from gateway.outbox.mailbox import Done, Mailbox, Submission
from gateway.outbox.quota import Amount, Quotas, exceeds
from gateway.values import Entry, Receipt
from gateway.wire.messages import RecordClass

UNCERTAIN_SECONDS: Final = 5.0
"""How long a caller whose time is over waits for a transaction that has begun."""

Answers = queue.SimpleQueue[Sequence[Receipt] | OutboxError]


def submission_of(
    entries: Sequence[Entry], quotas: Quotas, done: Done | None, abandoned: Callable[[OutboxError], None] | None
) -> Submission:
    """Make rows of entries, to be stored in one transaction.

    Raises:
        OutboxError: they are more than a class may ever hold.
    """
    rows = [(entry.record_class, row_of(entry.kind, entry.body, entry.recorded_at_ns, entry.blob)) for entry in entries]
    counts: dict[RecordClass, list[int]] = {}
    for record_class, row in rows:
        count = counts.setdefault(record_class, [0, 0])
        count[0] += 1
        count[1] += row[0]
    amounts = {name: Amount(*count) for name, count in counts.items()}
    for name, amount in amounts.items():
        if exceeds(quotas[name], amount):
            raise OutboxError(
                f"{amount.rows} entries of class {name} ({amount.disk_bytes} bytes on disk) are more than the "
                f"class may hold: raise outbox.classes.{name}.max_bytes or max_rows, or hand over less at once"
            )
    return Submission(rows, amounts, done, abandoned)


def stored_within(
    mailbox: Mailbox, entries: Sequence[Entry], quotas: Quotas, timeout_seconds: float | None
) -> list[Receipt]:
    """Have entries stored in one transaction and return when they are durable; `None` waits for ever.

    Raises:
        OutboxFullError: not stored within the time, and taken back.
        OutboxError: as `submission_of`; or the outbox is closed or has failed, nothing stored; or the transaction is
            still uncertain when the time is over, which the message says.
    """
    answers: Answers = queue.SimpleQueue()
    submission = submission_of(entries, quotas, answers.put, answers.put)
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    mailbox.offer(submission, timeout_seconds)
    try:
        answer = answers.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        answer = _take_back(mailbox, submission, answers)
    if isinstance(answer, OutboxError):
        raise answer
    return list(answer)


def _take_back(mailbox: Mailbox, submission: Submission, answers: Answers) -> Sequence[Receipt] | OutboxError:
    if mailbox.withdraw(submission):
        return OutboxFullError("the entries could not be stored in time and were taken back")
    try:
        return answers.get(timeout=UNCERTAIN_SECONDS)
    except queue.Empty:
        return OutboxError("the transaction has begun and not ended: whether the entries are stored is uncertain")
