from gateway.uplink.custody import TOLD, Custody, Part

EPOCH = "0123456789abcdef"
OTHER = "fedcba9876543210"


def part(first: int, last: int, epoch: str = EPOCH) -> Part:
    return Part(epoch, first - 1, first, last, last - first + 1)


def test_what_the_bridge_holds_is_found_by_the_digest_of_what_was_sent() -> None:
    custody = Custody(10)
    custody.sent("event", "a", part(1, 5))
    custody.sent("event", "b", part(6, 9))
    assert custody.kept("event", EPOCH, ["b", "a"]) == [part(1, 5), part(6, 9)]
    assert custody.kept("event", EPOCH, ["a"]) == [], "said twice is said once"


def test_a_payload_that_was_changed_on_its_way_and_one_of_another_class_are_unknown() -> None:
    custody = Custody(10)
    custody.sent("event", "a", part(1, 5))
    assert custody.kept("event", EPOCH, ["damaged"]) == []
    assert custody.kept("bulk", EPOCH, ["a"]) == []


def test_what_was_sent_of_another_store_says_nothing_about_this_one() -> None:
    custody = Custody(10)
    custody.sent("event", "a", part(1, 5, OTHER))
    assert custody.kept("event", EPOCH, ["a"]) == []
    assert custody.told("event", EPOCH) == ()


def test_batches_mention_it_until_the_mark_of_the_bridge_has_passed_it() -> None:
    custody = Custody(10)
    for first in (1, 6):
        custody.sent("event", str(first), part(first, first + 4))
    custody.kept("event", EPOCH, ["1", "6"])
    told = custody.told("event", EPOCH)
    assert [(kept.first, kept.last, kept.digest) for kept in told] == [(1, 5, "1"), (6, 10, "6")]
    custody.marked("event", 5)
    assert [kept.first for kept in custody.told("event", EPOCH)] == [6]
    assert custody.told("bulk", EPOCH) == ()
    assert custody.told("event", OTHER) == ()


def test_memory_is_bounded_whatever_the_bridge_cannot_read() -> None:
    custody = Custody(3)
    for first in range(1, 1000):
        custody.sent("event", str(first), part(first, first))
        custody.kept("event", EPOCH, [str(first)] if first % 2 else [])
    assert len(custody.told("event", EPOCH)) == TOLD
    assert custody.kept("event", EPOCH, ["2", "998"]) == [part(998, 998)]


def test_rows_that_have_other_numbers_now_are_forgotten() -> None:
    custody = Custody(10)
    custody.sent("event", "a", part(1, 5))
    custody.sent("event", "b", part(6, 9))
    custody.kept("event", EPOCH, ["a"])
    custody.forget("event")
    assert custody.kept("event", EPOCH, ["b"]) == []
    assert custody.told("event", EPOCH) == ()
