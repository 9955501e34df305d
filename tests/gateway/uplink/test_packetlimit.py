from gateway.uplink.exchange import PACKET_TOO_LARGE, Ending
from gateway.uplink.packetlimit import CUTS_BELIEVED, SMALLEST_GUESS_BYTES, PacketLimit

ANNOUNCED = 100_000
CUT = Ending("busy", "connection closed")


def begun() -> PacketLimit:
    limit = PacketLimit()
    limit.begin("mqtt://one:1883")
    return limit


def test_the_announced_limit_holds_until_something_else_is_known() -> None:
    limit = begun()
    assert limit.certain(ANNOUNCED) == limit.preferred(ANNOUNCED) == ANNOUNCED


def test_a_refused_size_is_never_tried_again() -> None:
    limit = begun()
    limit.refused(5000)
    limit.refused(4000)
    limit.refused(9000)
    assert limit.certain(ANNOUNCED) == limit.preferred(ANNOUNCED) == 3999


def test_an_ending_that_names_the_size_is_as_good_as_a_refusal() -> None:
    limit = begun()
    assert not limit.ended(Ending("refused", "Packet too large", PACKET_TOO_LARGE), 5000)
    assert limit.certain(ANNOUNCED) == 4999


def test_cuts_in_a_row_make_batches_smaller_and_say_nothing_certain() -> None:
    limit = begun()
    assert [limit.ended(CUT, 5000) for _ in range(CUTS_BELIEVED)] == [False, False, True]
    assert (limit.certain(ANNOUNCED), limit.preferred(ANNOUNCED)) == (ANNOUNCED, 2500)
    for _ in range(20 * CUTS_BELIEVED):
        limit.ended(CUT, limit.preferred(ANNOUNCED))
    assert limit.preferred(ANNOUNCED) == SMALLEST_GUESS_BYTES


def test_an_answer_in_between_or_another_reason_is_no_hint_at_sizes() -> None:
    limit = begun()
    for _ in range(10):
        limit.ended(CUT, 5000)
        limit.ended(CUT, 5000)
        limit.answered()
        limit.ended(Ending("unreachable", "silent"), 5000)
        limit.ended(Ending("busy", "Server busy", 0x89), 5000)
        limit.ended(CUT, 0)
    assert limit.preferred(ANNOUNCED) == ANNOUNCED


def test_another_broker_begins_with_nothing_known_and_the_same_one_does_not() -> None:
    limit = begun()
    limit.refused(5000)
    limit.begin("mqtt://one:1883")
    assert limit.certain(ANNOUNCED) == 4999
    limit.begin("mqtt://two:1883")
    assert limit.certain(ANNOUNCED) == ANNOUNCED


def answers_until_larger(limit: PacketLimit) -> int:
    """Count the answers after which larger batches are tried."""
    before = limit.preferred(ANNOUNCED)
    for count in range(1, 100_000):
        limit.answered()
        if limit.preferred(ANNOUNCED) > before:
            return count
    raise AssertionError("never")


def test_after_a_storm_of_cuts_batches_grow_again_to_what_the_broker_takes() -> None:
    limit = begun()
    for _ in range(20 * CUTS_BELIEVED):
        limit.ended(CUT, limit.preferred(ANNOUNCED))
    for _ in range(2000):
        limit.answered()
    assert limit.preferred(ANNOUNCED) == ANNOUNCED


def test_where_growth_meets_cuts_again_it_is_tried_ever_more_rarely() -> None:
    limit = begun()
    answers = []
    for _ in range(8):
        for _ in range(CUTS_BELIEVED):
            limit.ended(CUT, 20_000)
        answers.append(answers_until_larger(limit))
    assert answers == sorted(answers)
    assert answers[-1] >= 50 * answers[0]
