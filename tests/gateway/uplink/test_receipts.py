"""When what came from the local broker is acknowledged."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gateway.uplink.receipts import FEW, QUIET_SECONDS, SLOW_SECONDS, STUCK_SECONDS, Receipt, Receipts
from gateway.values import Done


class Connection:
    """Remembers the PUBACKs."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def acknowledge(self, packets: Sequence[int]) -> None:
        self.acknowledged += packets


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def connected(at_most: int = 1000, clock: Clock | None = None) -> tuple[Receipts, Connection]:
    receipts, connection = Receipts(at_most, monotonic=clock or Clock()), Connection()
    receipts.connected(connection, session_present=False)
    return receipts, connection


def take(receipts: Receipts, connection: Connection, packet: int, taker: str = "a") -> Done:
    """Receive a message and have it held."""
    receipt = receipts.arrived(connection, packet, "leaf", b"%d" % packet)
    assert receipt is not None
    done = receipt.hold(taker)
    receipt.done()
    return done


@given(st.permutations(range(1, 8)))
def test_acknowledgements_go_out_in_order_of_receipt_whatever_is_done_first(order: list[int]) -> None:
    receipts, connection = connected()
    done = {packet: take(receipts, connection, packet) for packet in range(1, 8)}
    said: set[int] = set()
    for packet in order:
        done[packet]()
        said.add(packet)
        assert set(connection.acknowledged) <= said
    assert connection.acknowledged == list(range(1, 8))


def test_a_message_nobody_holds_is_acknowledged_once_it_was_handed_on() -> None:
    receipts, connection = connected()
    receipt = receipts.arrived(connection, 1, "t", b"")
    assert isinstance(receipt, Receipt)
    assert connection.acknowledged == []
    receipt.done()
    receipts.useless(connection, 2)
    assert connection.acknowledged == [1, 2]


def test_a_message_waits_for_all_its_takers() -> None:
    receipts, connection = connected()
    receipt = receipts.arrived(connection, 1, "t", b"")
    assert receipt is not None
    first, second = receipt.hold("a"), receipt.hold("b")
    receipt.done()
    first()
    first()
    assert connection.acknowledged == []
    second()
    assert connection.acknowledged == [1]


def test_nothing_is_acknowledged_on_another_connection_than_it_came_on() -> None:
    receipts, first = connected()
    done = take(receipts, first, 1)
    receipts.disconnected(first)
    second = Connection()
    receipts.connected(second, session_present=True)
    take(receipts, second, 2)()
    done()
    assert (first.acknowledged, second.acknowledged) == ([], [2])


def test_what_comes_again_while_it_is_in_hand_is_not_handed_on_twice_and_acknowledged_where_it_came_last() -> None:
    receipts, first = connected()
    in_hand, done_meanwhile = take(receipts, first, 1), take(receipts, first, 2)
    receipts.disconnected(first)
    done_meanwhile()
    second = Connection()
    receipts.connected(second, session_present=True)
    assert receipts.arrived(second, 1, "leaf", b"1") is None
    assert receipts.arrived(second, 2, "leaf", b"2") is None
    assert second.acknowledged == []
    in_hand()
    assert (first.acknowledged, second.acknowledged) == ([], [1, 2])


def test_without_the_session_a_packet_identifier_means_nothing_any_more() -> None:
    receipts, first = connected()
    take(receipts, first, 1)
    second = Connection()
    receipts.connected(second, session_present=False)
    assert receipts.arrived(second, 1, "leaf", b"1") is not None


def test_another_message_under_the_identifier_of_one_in_hand_is_a_new_one() -> None:
    receipts, first = connected()
    take(receipts, first, 1)
    second = Connection()
    receipts.connected(second, session_present=True)
    assert receipts.arrived(second, 1, "leaf", b"other") is not None


def test_a_taker_that_stands_still_does_not_hold_up_the_others_and_is_protected_again_later() -> None:
    clock = Clock()
    receipts, connection = connected(10, clock)
    for taker in ("a", "b"):
        receipts.expect(taker)
    stuck = [take(receipts, connection, packet, "a") for packet in range(1, 6)]
    for packet in range(6, 11):
        take(receipts, connection, packet, "b")()
    receipts.look()
    assert connection.acknowledged == []
    clock.now += STUCK_SECONDS
    receipts.look()
    assert connection.acknowledged == list(range(1, 11))
    assert receipts.behind == ("a",)
    late = take(receipts, connection, 11, "a")
    assert connection.acknowledged[-1] == 11, "one that is behind is not waited for"
    for done in stuck:
        done()
    assert receipts.behind == ()
    late()
    kept = take(receipts, connection, 12, "a")
    assert connection.acknowledged[-1] == 11
    kept()
    assert connection.acknowledged[-1] == 12


def test_control_without_a_look_at_who_stands_still_nothing_moves() -> None:
    clock = Clock()
    receipts, connection = connected(10, clock)
    take(receipts, connection, 1, "a")
    for packet in range(2, 11):
        take(receipts, connection, packet, "b")()
    clock.now += 3600
    assert connection.acknowledged == []
    assert receipts.unacknowledged == 10


def test_a_slow_taker_with_a_full_connection_does_not_hold_up_the_others() -> None:
    clock = Clock()
    receipts, connection = connected(10, clock)
    receipts.expect("b")
    done = [take(receipts, connection, packet, "a") for packet in range(1, 11)]
    packet, seconds = 10, 0.0
    while not receipts.behind:
        assert seconds <= SLOW_SECONDS
        clock.now += 1.5
        seconds = clock.now - 101.5
        done.pop(0)()
        packet += 1
        done.append(take(receipts, connection, packet, "a"))
        receipts.look()
    assert receipts.unacknowledged == 0


def test_the_only_taker_has_the_broker_wait_for_it() -> None:
    clock = Clock()
    receipts, connection = connected(10, clock)
    for packet in range(1, 11):
        take(receipts, connection, packet)
    clock.now += 3600
    receipts.look()
    assert connection.acknowledged == []


def test_a_broker_that_sends_fewer_than_it_was_told_is_not_waited_for_for_ever() -> None:
    clock = Clock()
    receipts, connection = connected(1000, clock)
    for packet in range(1, FEW + 2):
        take(receipts, connection, packet)
    clock.now += QUIET_SECONDS
    receipts.look()
    assert connection.acknowledged == list(range(1, FEW + 2))


def test_a_few_readings_of_a_slow_sensor_are_held_as_long_as_it_takes() -> None:
    clock = Clock()
    receipts, connection = connected(1000, clock)
    for packet in range(1, FEW + 1):
        take(receipts, connection, packet)
        clock.now += 3600
        receipts.look()
    assert connection.acknowledged == []
