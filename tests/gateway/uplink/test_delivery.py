from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.uplink.delivery import TELL_NS, Delivery, Limits, Want
from gateway.uplink.pacing import SECOND
from gateway.wire.messages import CLASSES, Ack, RecordClass

EPOCH = "0123456789abcdef"
OTHER = "fedcba9876543210"
AT = "2026-01-01T00:00:00.000Z"


def ack(mark: int, epoch: str = EPOCH) -> Ack:
    return Ack(epoch=epoch, mark=mark, at=AT)


def begun(high: int = 10_000, name: RecordClass = "event", **limits: object) -> Delivery:
    delivery = Delivery(Limits(**{"batch_records": 80, **limits}))  # type: ignore[arg-type]
    delivery.begin(EPOCH, {name: (1, high)})
    delivery.link_up(65_535, 0)
    return delivery


def send(delivery: Delivery, now_ns: int = 0, rows: int | None = None) -> tuple[Want, int]:
    """Send what is wanted; return it and the ticket."""
    want = delivery.next_want(now_ns)
    assert want is not None
    ticket = delivery.sent(want, EPOCH, want.after_seq + 1, want.after_seq + (rows or want.max_records), now_ns)
    assert ticket is not None
    return want, ticket


def test_nothing_is_sent_without_a_connection() -> None:
    delivery = Delivery(Limits())
    delivery.begin(EPOCH, {"event": (1, 5)})
    assert delivery.next_want(0) is None
    delivery.link_up(100, 0)
    want = delivery.next_want(0)
    assert want is not None
    assert want.after_seq == 0


def test_batches_follow_each_other_and_the_bridge_confirms_them() -> None:
    delivery = begun()
    assert [send(delivery)[0].after_seq for _ in range(3)] == [0, 80, 160]
    assert delivery.acknowledged("event", ack(80), 1) == 80
    progress = delivery.progress()["event"]
    assert (progress.confirmed, progress.sent, progress.outstanding) == (80, 240, 2)


def test_rows_in_a_dead_letter_are_confirmed_as_soon_as_all_before_them_are() -> None:
    delivery = begun()
    for _ in range(3):
        send(delivery)
    assert delivery.kept("event", 80, 160, 1) is None, "marks know no holes"
    assert delivery.acknowledged("event", ack(80), 2) == 160
    assert delivery.progress()["event"].outstanding == 1
    assert delivery.kept("event", 160, 240, 3) == 240
    assert delivery.progress()["event"].outstanding == 0


def test_what_was_read_above_numbers_that_are_not_there_has_no_hole_before_it() -> None:
    delivery = begun()
    want = delivery.next_want(0)
    assert want is not None
    delivery.sent(want, EPOCH, 40, 119, 0)  # 1 to 39 were evicted
    assert delivery.kept("event", want.after_seq, 119, 1) == 119


def test_what_follows_a_dead_letter_is_sent_again_soon_so_that_the_bridge_hears_what_it_holds() -> None:
    delivery = begun(high=160)
    tickets = [send(delivery)[1] for _ in range(2)]
    for ticket in tickets:
        delivery.taken("event", ticket, 0)
    assert delivery.kept("event", 0, 80, 0) == 80
    assert delivery.deadline() == TELL_NS
    assert delivery.expire(TELL_NS) == (), "nothing is overdue"
    assert not delivery.is_degraded
    assert send(delivery, TELL_NS, 80)[0].after_seq == 80
    assert delivery.acknowledged("event", ack(160), TELL_NS) == 160


def test_where_nobody_listens_one_record_asks_again_soon_and_everything_goes_when_somebody_does() -> None:
    delivery = begun()
    first, second = send(delivery)[1], send(delivery)[1]
    delivery.unheard("event", first, 0)
    delivery.unheard("event", second, 0)  # it is gone back to already
    assert delivery.is_degraded
    asked = []
    now = 0
    for _ in range(4):
        now = delivery.deadline() or 0
        asked.append(now)
        want, ticket = send(delivery, now)
        assert (want.after_seq, want.max_records) == (0, 1)
        assert delivery.next_want(now) is None, "one asks for all"
        delivery.unheard("event", ticket, now)
    assert [at / SECOND for at in asked] == [0.5, 1.5, 3.5, 5.5]
    now = delivery.deadline() or 0
    delivery.taken("event", send(delivery, now)[1], now)
    assert not delivery.is_degraded
    assert send(delivery, now)[0].max_records == 80


def test_the_control_a_broker_that_does_not_say_so_is_asked_again_after_the_time_out_of_the_ack() -> None:
    delivery = begun()
    delivery.taken("event", send(delivery)[1], 0)
    assert delivery.deadline() == Limits().ack_timeout_seconds * SECOND


def test_a_broker_that_hands_records_to_others_than_subscribers_is_not_believed_for_long() -> None:
    delivery = begun()
    delivery.unheard("event", send(delivery)[1], 0)
    assert delivery.acknowledged("event", ack(80), 1) == 80
    for _ in range(3):
        want, ticket = send(delivery, SECOND)
        assert want.max_records == 80
        delivery.unheard("event", ticket, SECOND)
    assert not delivery.is_degraded


def test_a_puback_confirms_nothing() -> None:
    delivery = begun()
    _, ticket = send(delivery)
    delivery.taken("event", ticket, 5)
    progress = delivery.progress()["event"]
    assert (progress.confirmed, progress.outstanding) == (0, 1)


@pytest.mark.parametrize(
    ("message", "expected", "why"),
    [
        (ack(80), 80, "the first batch"),
        (ack(50), 50, "the middle of a batch: the bridge cuts as it likes"),
        (ack(160), 160, "all that was sent"),
        (ack(0), None, "nothing new"),
        (ack(161), None, "more than was ever sent"),
        (ack(10**12), None, "far more than was ever sent"),
        (ack(80, OTHER), None, "of another store"),
    ],
)
def test_a_mark_is_believed_only_where_it_can_be_true(message: Ack, expected: int | None, why: str) -> None:
    delivery = Delivery(Limits(batch_records=80))
    delivery.begin(EPOCH, {})
    delivery.offer(["event"], 0)
    delivery.link_up(100, 0)
    send(delivery)
    send(delivery)
    assert delivery.acknowledged("event", message, 1) == expected, why
    assert delivery.progress()["event"].confirmed == (expected or 0)


def test_marks_only_move_forward() -> None:
    delivery = begun()
    send(delivery)
    send(delivery)
    assert delivery.acknowledged("event", ack(160), 1) == 160
    assert delivery.acknowledged("event", ack(80), 2) is None
    assert delivery.progress()["event"].confirmed == 160


def test_after_a_restart_a_retained_mark_saves_what_was_already_committed() -> None:
    delivery = begun(high=500)
    assert delivery.acknowledged("event", ack(400), 1) == 400
    assert send(delivery)[0].after_seq == 400


@pytest.mark.parametrize("digest", ["ab" * 32, ""])
def test_a_mark_of_rows_that_this_run_has_not_sent_needs_a_proof_with_and_without_a_digest(digest: str) -> None:
    delivery = begun(high=500, batch_records=200)
    message = Ack(epoch=EPOCH, mark=400, at="", digest=digest)
    assert delivery.needs_proof("event", message)
    for _ in range(2):
        _, ticket = send(delivery)
        assert delivery.needs_proof("event", message), "what is on its way may be lost with the connection"
        delivery.taken("event", ticket, 0)
    assert not delivery.needs_proof("event", message), "the broker has all of it"
    delivery.acknowledged("event", message, 1)
    assert not delivery.needs_proof("event", message)


def test_a_mark_beyond_what_was_sent_confirms_what_the_broker_had_taken_by_then() -> None:
    delivery = begun(high=500)
    assert delivery.taken_to("event") == 0
    _, first = send(delivery)
    _, second = send(delivery)
    delivery.taken("event", second, 1)
    assert delivery.taken_to("event") == 0
    delivery.taken("event", first, 1)
    assert delivery.taken_to("event") == 160
    assert delivery.reached("event", OTHER, 160, 2) is None
    assert delivery.reached("event", EPOCH, 160, 2) == 160
    assert delivery.reached("event", EPOCH, 160, 2) is None
    assert not delivery.has_met("event")
    assert send(delivery)[0].after_seq == 160


def test_after_a_restart_a_mark_for_an_empty_class_does_no_harm() -> None:
    delivery = Delivery(Limits())
    delivery.begin(EPOCH, {})
    delivery.link_up(100, 0)
    assert delivery.acknowledged("event", ack(500), 1) is None
    delivery.offer(["event"], 2)
    want = delivery.next_want(2)
    assert want is not None
    assert delivery.sent(want, EPOCH, 501, 501, 2) is not None
    assert delivery.acknowledged("event", ack(501), 3) == 501


def test_everything_unconfirmed_is_sent_again_after_a_reconnect() -> None:
    delivery = begun()
    send(delivery)
    send(delivery)
    delivery.acknowledged("event", ack(80), 1)
    delivery.link_down()
    delivery.link_up(100, 2)
    assert send(delivery, 2)[0].after_seq == 80
    assert delivery.progress()["event"].resent_batches == 1


def test_without_an_ack_the_class_goes_back_and_probes_at_doubling_intervals() -> None:
    delivery = begun(ack_timeout_seconds=5.0)
    now = 0
    for _ in range(3):
        _, ticket = send(delivery, now)
        delivery.taken("event", ticket, now)
    intervals = []
    for _ in range(7):
        deadline = delivery.deadline()
        assert deadline is not None
        intervals.append((deadline - now) / SECOND)
        assert delivery.expire(deadline - 1) == ()
        assert delivery.expire(deadline) == ("event",)
        now = deadline
        want, ticket = send(delivery, now)
        assert (want.after_seq, want.max_records) == (0, 10)  # one batch, an eighth of the size
        delivery.taken("event", ticket, now)
        assert delivery.next_want(now) is None
        assert delivery.is_degraded
    assert intervals == [5, 10, 20, 20, 20, 20, 20]
    assert delivery.acknowledged("event", ack(240), now) == 240  # it had all arrived; only the acks were lost
    assert not delivery.is_degraded
    assert send(delivery, now)[0].after_seq == 240


def test_the_clock_of_the_ack_runs_only_once_the_broker_has_everything() -> None:
    delivery = begun(ack_timeout_seconds=5.0, puback_timeout_seconds=30.0)
    _, first = send(delivery)
    _, second = send(delivery)
    delivery.taken("event", first, 1 * SECOND)
    assert delivery.expire(29 * SECOND) == ()
    assert not delivery.is_stuck(30 * SECOND)
    assert delivery.is_stuck(31 * SECOND)  # a batch the broker never answered: only a new connection helps
    delivery.taken("event", second, 29 * SECOND)
    assert not delivery.is_stuck(31 * SECOND)
    assert delivery.deadline() == 34 * SECOND


def test_a_refused_batch_stays_and_is_tried_again_slower_and_slower() -> None:
    delivery = begun(rejected_pause_seconds=1.0)
    now, pauses = 0, []
    for _ in range(6):
        want, ticket = send(delivery, now)
        assert want.after_seq == 0
        delivery.rejected("event", ticket, now)
        assert delivery.next_want(now) is None
        deadline = delivery.deadline()
        assert deadline is not None
        pauses.append((deadline - now) / SECOND)
        now = deadline
    assert pauses == [1, 2, 4, 8, 16, 16]
    _, ticket = send(delivery, now)
    delivery.taken("event", ticket, now)
    assert not delivery.is_degraded


def test_urgent_classes_go_first_and_none_starves() -> None:
    delivery = Delivery(Limits(in_flight=100, batch_records=10, ageing_seconds=1.0))
    delivery.begin(EPOCH, dict.fromkeys(CLASSES, (1, 10_000)))
    delivery.link_up(100, 0)
    served: list[RecordClass] = []
    for step in range(100):
        now = step * SECOND // 10
        want, _ = send(delivery, now)
        served.append(want.record_class)
        delivery.acknowledged(want.record_class, ack(want.after_seq + 10), now)
    counts = {name: served.count(name) for name in CLASSES}
    assert served[:5] == ["critical"] * 5
    assert counts["critical"] > 60
    assert counts["critical"] > counts["event"] > counts["measure"] >= counts["bulk"] >= 2


def test_a_fresh_critical_record_does_not_wait_for_the_window_of_a_backlog() -> None:
    delivery = Delivery(Limits(in_flight=4))
    delivery.begin(EPOCH, {"bulk": (1, 100_000)})
    delivery.link_up(100, 0)
    sent = 0
    while (want := delivery.next_want(0)) is not None:
        delivery.sent(want, EPOCH, want.after_seq + 1, want.after_seq + 10, 0)
        sent += 1
    assert sent == 3  # one place is kept
    delivery.offer(["critical"], 1)
    want = delivery.next_want(1)
    assert want is not None
    assert want.record_class == "critical"


@pytest.mark.parametrize(("in_flight", "receive_maximum", "expected"), [(20, 1, 1), (20, 3, 2), (1, 100, 1), (4, 9, 3)])
def test_the_window_is_the_smaller_of_ours_and_the_servers(in_flight: int, receive_maximum: int, expected: int) -> None:
    delivery = Delivery(Limits(in_flight=in_flight))
    delivery.begin(EPOCH, {"bulk": (1, 1_000_000)})
    delivery.link_up(receive_maximum, 0)
    outstanding: list[int] = []
    for _ in range(100):  # let it grow: acks come at once
        while (want := delivery.next_want(0)) is not None:
            delivery.sent(want, EPOCH, want.after_seq + 1, want.after_seq + 5, 0)
        outstanding.append(delivery.progress()["bulk"].outstanding)
        delivery.acknowledged("bulk", ack(delivery.progress()["bulk"].sent), 0)
    assert max(outstanding) == expected


def test_the_window_shrinks_when_acks_take_long_and_grows_again() -> None:
    delivery = begun(high=10**9, name="bulk", in_flight=20)

    def fill(now: int) -> int:
        while (want := delivery.next_want(now)) is not None:
            delivery.sent(want, EPOCH, want.after_seq + 1, want.after_seq + 5, now)
        return delivery.progress()["bulk"].outstanding

    now = 0
    for _ in range(30):  # a quick link
        fill(now)
        now += SECOND // 20
        delivery.acknowledged("bulk", ack(delivery.progress()["bulk"].sent), now)
    assert fill(now) == 19
    for _ in range(10):  # the same link, clogged
        now += 3 * SECOND
        delivery.acknowledged("bulk", ack(delivery.progress()["bulk"].sent), now)
        clogged = fill(now)
    assert clogged == 1
    for _ in range(40):
        now += SECOND // 20
        delivery.acknowledged("bulk", ack(delivery.progress()["bulk"].sent), now)
        healed = fill(now)
    assert healed == 19


def test_rows_read_before_the_class_was_moved_are_not_sent() -> None:
    delivery = begun()
    want = delivery.next_want(0)
    assert want is not None
    delivery.acknowledged("event", ack(500), 0)  # a retained mark arrives while the rows are read
    assert delivery.sent(want, EPOCH, 1, 80, 0) is None
    assert send(delivery)[0].after_seq == 500


def test_a_commit_announced_while_reading_is_not_missed() -> None:
    delivery = begun()
    want = delivery.next_want(0)
    assert want is not None
    delivery.offer(["event"], 0)
    delivery.nothing(want)
    assert delivery.next_want(0) is not None
    again = delivery.next_want(0)
    assert again is not None
    delivery.nothing(again)
    assert delivery.next_want(0) is None


def test_a_new_epoch_starts_all_classes_over() -> None:
    delivery = begun()
    send(delivery)
    late = delivery.next_want(0)
    assert late is not None
    delivery.begin(OTHER, {"event": (1, 7)})
    assert delivery.sent(late, EPOCH, 81, 160, 0) is None
    assert delivery.acknowledged("event", ack(80), 1) is None
    assert delivery.acknowledged("event", ack(7, OTHER), 1) == 7


# ---- a lossy world -----------------------------------------------------------------------------------


class LossyWorld(RuleBasedStateMachine):
    """A store, a broker that loses what it likes, and a bridge that commits; whatever happens, in any order.

    Checked at every step: the bridge never has a row the store did not commit, rows of a class are first
    committed in order, and nothing leaves the store that the bridge has not committed. At the end the weather
    clears, and then all must arrive, in bounded time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.limits = Limits(in_flight=4, batch_records=8, ack_timeout_seconds=1.0, puback_timeout_seconds=6.0)
        self.delivery = Delivery(self.limits)
        self.next_seq: dict[RecordClass, int] = dict.fromkeys(CLASSES, 1)
        self.stored: dict[RecordClass, set[int]] = {name: set() for name in CLASSES}
        self.base: dict[RecordClass, int] = dict.fromkeys(CLASSES, 1)
        self.bridge: dict[RecordClass, set[int]] = {name: set() for name in CLASSES}
        self.mark: dict[RecordClass, int] = dict.fromkeys(CLASSES, 0)
        self.evicted: dict[RecordClass, set[int]] = {name: set() for name in CLASSES}
        self.broker: list[tuple[RecordClass, int, int, list[int]]] = []  # class, ticket, base, rows: not yet answered
        self.at_bridge: list[tuple[RecordClass, int, list[int]]] = []
        self.acks: list[tuple[RecordClass, Ack]] = []
        self.connected = False

    @initialize()
    def start(self) -> None:
        self.delivery.begin(EPOCH, {})

    @rule(name=st.sampled_from(CLASSES), count=st.integers(1, 30))
    def commit(self, name: RecordClass, count: int) -> None:
        first = self.next_seq[name]
        self.stored[name] |= set(range(first, first + count))
        self.next_seq[name] += count
        self.delivery.offer([name], self.now)

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True
        self.delivery.link_up(65_535, self.now)
        for name in CLASSES:  # retained
            if self.mark[name]:
                self.acks.append((name, ack(self.mark[name])))

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self) -> None:
        self.connected = False
        self.broker.clear()
        self.acks.clear()
        self.delivery.link_down()

    @rule()
    def restart(self) -> None:
        """The gateway's process is killed and comes back."""
        self.connected = False
        self.broker.clear()
        self.acks.clear()
        self.delivery = Delivery(self.limits)
        self.delivery.begin(EPOCH, {name: (min(rows), max(rows)) for name, rows in self.stored.items() if rows})

    @rule(steps=st.integers(1, 6))
    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.delivery.expire(self.now)
            want = self.delivery.next_want(self.now)
            if want is None:
                return
            name = want.record_class
            rows = sorted(seq for seq in self.stored[name] if seq > want.after_seq)[: want.max_records]
            if not rows:
                self.delivery.nothing(want)
                continue
            ticket = self.delivery.sent(want, EPOCH, rows[0], rows[-1], self.now)
            if ticket is not None:
                self.broker.append((name, ticket, self.base[name], rows))

    @precondition(lambda self: self.broker)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "deliver", "lie", "refuse"]))
    def broker_answers(self, data: st.DataObject, fate: str) -> None:
        at = data.draw(st.integers(0, len(self.broker) - 1)) if fate == "refuse" else 0
        name, ticket, base, rows = self.broker.pop(at)
        if fate == "refuse":
            self.delivery.rejected(name, ticket, self.now)
            return
        self.delivery.taken(name, ticket, self.now)
        if fate == "deliver":
            self.at_bridge.append((name, base, rows))

    @precondition(lambda self: self.at_bridge)
    @rule(lose_ack=st.booleans())
    def bridge_commits(self, lose_ack: bool) -> None:
        name, base, rows = self.at_bridge.pop(0)
        for seq in rows:
            assert seq < self.next_seq[name]
            self.bridge[name].add(seq)
        mark = max(self.mark[name], base - 1)
        while mark + 1 in self.bridge[name]:
            mark += 1
        self.mark[name] = mark
        if not lose_ack:
            self.acks.append((name, ack(mark)))

    @precondition(lambda self: self.acks and self.connected)
    @rule(data=st.data(), twice=st.booleans())
    def ack_arrives(self, data: st.DataObject, twice: bool) -> None:
        at = data.draw(st.integers(0, len(self.acks) - 1))  # in any order
        name, message = self.acks[at]
        if not twice:
            self.acks.pop(at)
        self._confirm(name, message)

    @rule(name=st.sampled_from(CLASSES), mark=st.integers(0, 500), epoch=st.sampled_from([OTHER, "0" * 16]))
    def a_foreign_ack_arrives(self, name: RecordClass, mark: int, epoch: str) -> None:
        assert self.delivery.acknowledged(name, ack(mark, epoch), self.now) is None

    @rule(name=st.sampled_from(["measure", "bulk"]), count=st.integers(1, 10))
    def evict(self, name: RecordClass, count: int) -> None:
        gone = sorted(self.stored[name])[:count]
        if gone:
            self.stored[name] -= set(gone)
            self.evicted[name] |= set(gone)
            self.base[name] = max(self.base[name], gone[-1] + 1)

    @rule(milliseconds=st.integers(1, 3000))
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds * 1_000_000
        if self.connected and self.delivery.is_stuck(self.now):
            self.cut()

    @invariant()
    def nothing_leaves_before_it_is_committed(self) -> None:
        for name in CLASSES:
            gone = set(range(1, self.next_seq[name])) - self.stored[name]
            assert gone <= self.bridge[name] | self.evicted[name]

    @invariant()
    def the_window_is_kept(self) -> None:
        outstanding = {name: each.outstanding for name, each in self.delivery.progress().items()}
        assert sum(outstanding.values()) - outstanding["critical"] < max(2, self.limits.in_flight)
        assert sum(outstanding.values()) <= self.limits.in_flight + 1

    def teardown(self) -> None:
        """The weather clears: all must arrive."""
        if not self.connected:
            self.connect()
        for _ in range(400):
            if not any(self.stored.values()):
                return
            self.work(10)
            while self.broker:
                self.broker_answers_well()
            while self.at_bridge:
                self.bridge_commits_well()
            while self.acks:
                self._confirm(*self.acks.pop(0))
            deadline = self.delivery.deadline()
            self.now = max(self.now + 1_000_000, deadline or 0)
        waiting = defaultdict(int, {name: len(rows) for name, rows in self.stored.items() if rows})
        raise AssertionError(f"not all was delivered: {dict(waiting)}")

    def broker_answers_well(self) -> None:
        name, ticket, base, rows = self.broker.pop(0)
        self.delivery.taken(name, ticket, self.now)
        self.at_bridge.append((name, base, rows))

    def bridge_commits_well(self) -> None:
        name, base, rows = self.at_bridge.pop(0)
        self.bridge[name] |= set(rows)
        mark = max(self.mark[name], base - 1)
        while mark + 1 in self.bridge[name]:
            mark += 1
        self.mark[name] = mark
        self.acks.append((name, ack(mark)))

    def _confirm(self, name: RecordClass, message: Ack) -> None:
        mark = self.delivery.acknowledged(name, message, self.now)
        if mark is not None:
            self.stored[name] -= set(range(1, mark + 1))
            self.base[name] = max(self.base[name], mark + 1)


TestLossyWorld = LossyWorld.TestCase
TestLossyWorld.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def test_a_pause_that_is_over_is_no_reason_to_wake_up() -> None:
    """Where the window is full, or nothing comes back, a time in the past would make the uplink spin."""
    delivery = begun(rejected_pause_seconds=1.0)
    _, ticket = send(delivery)
    delivery.rejected("event", ticket, 0)
    now = 2 * SECOND
    _, ticket = send(delivery, now)  # one probe
    assert delivery.next_want(now) is None
    deadline = delivery.deadline()
    assert deadline is not None
    assert deadline > now


def test_a_batch_that_is_too_much_for_a_thin_link_is_given_more_time_on_each_new_connection() -> None:
    """256 KiB over 64 kbit/s take longer than a broker may be silent; in ever new connections they would never pass."""
    delivery = begun(name="bulk", puback_timeout_seconds=30.0)
    now, patience = 0, []
    for _ in range(6):
        send(delivery, now)
        deadline = delivery.deadline()
        assert deadline is not None
        assert not delivery.is_stuck(deadline - 1)
        assert delivery.is_stuck(deadline)
        patience.append((deadline - now) // SECOND)
        now = deadline
        delivery.link_down()
        delivery.link_up(20, now)
    assert patience == [30, 60, 120, 240, 480, 480]
    _, ticket = send(delivery, now)
    delivery.taken("bulk", ticket, now + SECOND)  # the link is well again
    send(delivery, now + SECOND)
    assert delivery.is_stuck(now + 31 * SECOND)


def test_batches_behind_one_another_are_given_time_one_after_the_other() -> None:
    delivery = begun(name="bulk", puback_timeout_seconds=30.0)
    tickets = [send(delivery)[1] for _ in range(3)]
    for number, ticket in enumerate(tickets, 1):
        assert not delivery.is_stuck(number * 20 * SECOND)
        delivery.taken("bulk", ticket, number * 20 * SECOND)


def test_a_batch_that_the_broker_passed_over_is_not_waited_for_again() -> None:
    """A broker answers in order (MQTT 5 §4.6)."""
    delivery = begun(puback_timeout_seconds=30.0)
    send(delivery)
    _, second = send(delivery)
    delivery.taken("event", second, 20 * SECOND)
    assert delivery.is_stuck(30 * SECOND)
