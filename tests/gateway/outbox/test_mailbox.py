"""Between producers and writer."""

import threading

import pytest

from gateway.errors import OutboxError, OutboxFullError
from gateway.outbox.mailbox import Mailbox, Submission
from gateway.outbox.quota import Amount
from gateway.wire.messages import RecordClass
from tests.gateway.outbox.outbox_kit import until


def submission(entries: int = 1, record_class: RecordClass = "event") -> Submission:
    row = (100, 1, "event", b"{}", b"")
    return Submission([(record_class, row)] * entries, {record_class: Amount(entries, 100 * entries)}, None)


def taken(mailbox: Mailbox) -> list[Submission]:
    return list(mailbox.take(0, submissions=True).submissions)


def test_submissions_come_out_in_order_and_count_until_they_are_settled() -> None:
    mailbox = Mailbox(10)
    first, second = submission(3), submission(4)
    mailbox.offer(first, 0)
    mailbox.offer(second, 0)
    assert taken(mailbox) == [first, second]
    assert mailbox.waiting == 7
    with pytest.raises(OutboxFullError):
        mailbox.offer(submission(4), 0)
    mailbox.settled([first, second])
    assert mailbox.waiting == 0


def test_a_submission_larger_than_the_queue_enters_an_empty_one() -> None:
    mailbox = Mailbox(2)
    mailbox.offer(submission(5), 0)
    assert mailbox.waiting == 5


def test_a_batch_ends_somewhere() -> None:
    mailbox = Mailbox(100_000)
    for _ in range(50):
        mailbox.offer(submission(100), 0)
    assert sum(one.entries for one in taken(mailbox)) == 2000


def test_what_is_put_back_comes_out_first() -> None:
    mailbox = Mailbox(10)
    first, second, third = submission(), submission(), submission()
    mailbox.offer(first, 0)
    mailbox.offer(second, 0)
    batch = taken(mailbox)
    mailbox.offer(third, 0)
    mailbox.put_back(batch)
    assert taken(mailbox) == [first, second, third]


def test_a_submission_can_be_taken_back_until_the_writer_has_it() -> None:
    mailbox = Mailbox(10)
    first, second = submission(), submission()
    mailbox.offer(first, 0)
    mailbox.offer(second, 0)
    assert mailbox.withdraw(first)
    assert taken(mailbox) == [second]
    assert not mailbox.withdraw(second)
    assert mailbox.waiting == 1


def test_a_parked_submission_that_was_taken_back_stays_away() -> None:
    mailbox = Mailbox(10)
    first, second = submission(2, "critical"), submission(1, "critical")
    mailbox.offer(first, 0)
    mailbox.offer(second, 0)
    parked = taken(mailbox)
    mailbox.park(parked, frozenset({"critical"}))
    assert mailbox.parked == 3
    assert mailbox.withdraw(first)
    assert (mailbox.parked, mailbox.waiting) == (1, 1)
    assert mailbox.unpark(parked) == [second]


def test_the_highest_mark_counts() -> None:
    mailbox = Mailbox(10)
    mailbox.acknowledge("event", "a" * 16, 7)
    mailbox.acknowledge("event", "a" * 16, 5)
    mailbox.acknowledge("event", "b" * 16, 9)
    assert mailbox.take(0, submissions=True).marks == {("event", "a" * 16): 7, ("event", "b" * 16): 9}
    assert mailbox.take(0, submissions=True).marks == {}


def test_a_producer_that_waits_goes_on_when_there_is_room_and_hears_of_the_end() -> None:
    mailbox = Mailbox(1)
    mailbox.offer(submission(), 0)
    errors: list[OutboxError] = []
    entered = threading.Event()

    def produce() -> None:
        mailbox.offer(submission(), None)
        entered.set()
        try:
            mailbox.offer(submission(), None)
        except OutboxError as error:
            errors.append(error)

    thread = threading.Thread(target=produce)
    thread.start()
    mailbox.settled(taken(mailbox))
    assert entered.wait(20)
    mailbox.close()
    thread.join(20)
    until(lambda: errors)
    assert "closed" in str(errors[0])


def test_the_writer_never_waits_for_itself() -> None:
    mailbox = Mailbox(1)
    mailbox.owned_by(threading.get_ident())
    mailbox.offer(submission(), None)
    mailbox.offer(submission(), None)
    assert len(taken(mailbox)) == 2


def test_after_a_failure_entries_stay_and_new_ones_are_refused_until_it_resumes() -> None:
    mailbox = Mailbox(10)
    first = submission()
    mailbox.offer(first, 0)
    mailbox.fail("the disk broke")
    with pytest.raises(OutboxError, match="the disk broke"):
        mailbox.offer(submission(), 0)
    mailbox.resume()
    mailbox.offer(submission(), 0)
    assert taken(mailbox)[0] is first
