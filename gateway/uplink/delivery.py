"""Decides which records are sent next and which are confirmed. Pure: no I/O, and the time comes in.

Each class is a stream of its own. What was sent beyond the confirmed mark is outstanding until the *bridge* has
acknowledged it; the broker's PUBACK only shows that the transport moves (it restarts the clock, and nothing
else), because brokers acknowledge what they then lose. When a class makes no progress for the ack time-out, it
goes back to its mark and probes with one small batch, at doubling intervals, until the bridge answers.

Order of service: critical, event, measure, bulk; a class that waits gains one rank each `ageing_seconds`, so no
class starves. One place of the window is kept for critical; how wide the window is says `pacing`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.uplink.pacing import SECOND, BrokerPatience, Window
from gateway.uplink.streams import Batch, Stream
from gateway.wire.messages import CLASSES, Ack, RecordClass

PROBE_SHARE: Final = 8
"""A probe is a batch of this fraction."""
MAX_PATIENCE_DOUBLINGS: Final = 2
"""A probe is cheap, and a bridge that is back should be found soon: 5, 10, then every 20 s by default."""
MAX_PAUSE_DOUBLINGS: Final = 4
UNHEARD_PAUSE_NS: Final = SECOND // 2
MAX_UNHEARD_DOUBLINGS: Final = 2
"""While the broker has nobody for our records, one of them asks again after 0.5, 1, then every 2 s."""
TELL_NS: Final = SECOND // 4
"""The bridge must hear soon which numbers it holds unread: until then its mark stands still below them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The figures a delivery goes by."""

    in_flight: int = 20
    batch_records: int = 500
    batch_bytes: int = 256 * 1024
    ack_timeout_seconds: float = 5.0
    puback_timeout_seconds: float = 30.0
    ageing_seconds: float = 1.0
    rejected_pause_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Want:
    """Rows to be read and sent: of this class, after this sequence number, so many at most."""

    record_class: RecordClass
    after_seq: int
    max_records: int
    max_bytes: int
    turn: int  # tells whether the stream was moved meanwhile
    offers: int  # tells whether more rows were announced meanwhile


@dataclass(frozen=True, slots=True)
class ClassProgress:
    """How far a class is."""

    sent: int  # highest sequence number ever sent in this epoch
    confirmed: int  # everything up to here is committed in the bridge's store, as records or as dead letters
    outstanding: int  # batches sent and not confirmed
    resent_batches: int
    timeouts: int  # in a row, without an ack


class Delivery:
    """The state of all classes. Every method is called from one thread; `now_ns` is monotonic."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._epoch = ""
        self._streams: dict[RecordClass, Stream] = {name: Stream() for name in CLASSES}
        self._connected = False
        self._window = Window(limits.in_flight)
        self._patience = BrokerPatience(limits.puback_timeout_seconds)
        self._tickets = 0
        self._names_the_deaf = True  # the broker says so when nobody listens, and is right
        self.ignored_acks = 0

    # ---- what happens --------------------------------------------------------------------------------

    def begin(self, epoch: str, heads: Mapping[RecordClass, tuple[int, int]]) -> None:
        """Take note of the store: its epoch, and the lowest and highest row of each class that has any.

        A new epoch starts all classes over; nothing of the old one can be confirmed any more.
        """
        if epoch != self._epoch:
            self._epoch = epoch
            self._streams = {name: Stream(turn=old.turn + 1) for name, old in self._streams.items()}
            for name, (_, high) in heads.items():
                self._streams[name].stored_high = high
        for name, (_, high) in heads.items():
            if high > self._streams[name].sent_to:
                self._more(name, self._streams[name].waiting_since_ns)

    def offer(self, classes: Iterable[RecordClass], now_ns: int) -> None:
        """Rows were committed in these classes."""
        for name in classes:
            self._more(name, now_ns)

    def link_up(self, receive_maximum: int, now_ns: int) -> None:
        """A connection is there. Everything unconfirmed is sent again: the broker may have lost it."""
        self._connected = True
        self._window.begin(receive_maximum)
        self._patience.link_up()
        self._names_the_deaf = True
        for stream in self._streams.values():
            stream.go_back()
            stream.timeouts = stream.rejections = stream.unheard = 0
            stream.not_before_ns = 0
            stream.waiting_since_ns = now_ns

    def link_down(self) -> None:
        """The connection is gone; answers to what was sent on it will not come."""
        self._connected = False
        self._patience.link_down()
        for stream in self._streams.values():
            stream.go_back()

    def sent(self, want: Want, epoch: str, first: int, last: int, now_ns: int) -> int | None:
        """Rows `first` to `last` were read for `want` and go out now; return their ticket.

        None means that the stream was moved while they were read: they must not be sent.
        """
        stream = self._streams[want.record_class]
        if not self._connected or epoch != self._epoch or stream.turn != want.turn:
            return None
        if stream.sent_high >= first:
            stream.resent += 1
        if not stream.batches:
            stream.progress_ns = now_ns
        self._tickets += 1
        stream.untold = False  # each batch mentions them
        stream.batches.append(Batch(self._tickets, first, last, now_ns))
        stream.sent_to = last
        stream.sent_high = max(stream.sent_high, last)
        stream.waiting_since_ns = now_ns
        return self._tickets

    def nothing(self, want: Want) -> None:
        """There are no rows for `want`."""
        stream = self._streams[want.record_class]
        if stream.offers == want.offers and stream.turn == want.turn:
            stream.has_more = False

    def taken(self, record_class: RecordClass, ticket: int, now_ns: int) -> None:
        """The broker has answered a batch. That confirms nothing; it shows that the link moves."""
        stream = self._streams[record_class]
        for batch in stream.batches:
            if batch.ticket == ticket:
                self._patience.taken(ticket, batch.sent_ns, now_ns)
                batch.taken = True
                stream.taken_high = max(stream.taken_high, self.taken_to(record_class))
                stream.progress_ns = now_ns
                stream.rejections = stream.unheard = 0
                return

    def unheard(self, record_class: RecordClass, ticket: int, now_ns: int) -> None:
        """The broker has answered a batch, and has nobody to give it to (MQTT 5 §3.4.2.1, reason 0x10).

        As after a broker has lost its sessions, until the bridge is back too. Waiting for an ack would be in vain; one
        record asks again soon, and often, so that a fresh critical record is not held up by the time-outs of acks.
        """
        stream = self._streams[record_class]
        if not self._names_the_deaf:
            self.taken(record_class, ticket, now_ns)
        elif any(batch.ticket == ticket for batch in stream.batches):
            self._patience.answered(ticket, now_ns)
            stream.go_back()
            stream.not_before_ns = now_ns + (UNHEARD_PAUSE_NS << min(stream.unheard, MAX_UNHEARD_DOUBLINGS))
            stream.unheard += 1

    def rejected(self, record_class: RecordClass, ticket: int | None, now_ns: int) -> None:
        """The broker refused a batch (or, without a ticket, would if it were sent): the class pauses, rows stay."""
        stream = self._streams[record_class]
        if ticket is not None and all(batch.ticket != ticket for batch in stream.batches):
            return
        if ticket is not None:
            self._patience.answered(ticket, now_ns)
        stream.go_back()
        pause = self._limits.rejected_pause_seconds * 2.0 ** min(stream.rejections, MAX_PAUSE_DOUBLINGS)
        stream.rejections += 1
        stream.not_before_ns = now_ns + int(pause * SECOND)

    def acknowledged(self, record_class: RecordClass, ack: Ack, now_ns: int) -> int | None:
        """The bridge has committed everything up to a mark; return the mark if it confirms something new.

        Marks only move forward. One beyond all that this store can have given away is not believed: rows that
        were never sent would be thrown away on it. See `is_ahead` for what it may mean.
        """
        stream = self._streams[record_class]
        if ack.epoch != self._epoch or ack.mark > max(stream.sent_high, stream.stored_high):
            self.ignored_acks += 1
            return None
        stream.doubted = False
        if ack.mark <= stream.confirmed:
            return None
        stream.met = stream.met or ack.mark <= stream.sent_high
        return self._confirm(stream, ack.mark, now_ns)

    def kept(self, record_class: RecordClass, after: int, last: int, now_ns: int) -> int | None:
        """The bridge holds all rows above `after`, up to `last`, as a dead letter; return the mark if that confirms.

        It does not while something before them is unconfirmed: marks know no holes.
        """
        stream = self._streams[record_class]
        stream.unread.append((after, last))
        before = stream.confirmed
        self._confirm(stream, before, now_ns)
        if stream.confirmed == before:
            return None
        stream.untold = True
        return stream.confirmed

    def is_ahead(self, record_class: RecordClass, ack: Ack) -> bool:
        """Tell whether a mark of our epoch is beyond all that this store has given away, and may come from a loss.

        The file was put back from an older copy, or its disk has lost a tail: the store must decide. Not once the
        bridge has confirmed what this run sent, or the store has followed: then another device is at work.
        """
        stream = self._streams[record_class]
        if ack.epoch != self._epoch or self.has_met(record_class):
            return False
        return ack.mark > max(stream.sent_high, stream.stored_high)

    def has_met(self, record_class: RecordClass) -> bool:
        """Tell whether this run and the bridge have agreed on the numbers."""
        return self._streams[record_class].met

    def taken_or_confirmed(self, record_class: RecordClass) -> int:
        """Return up to which number the broker has rows of this run, or need not have them."""
        stream = self._streams[record_class]
        return max(stream.taken_high, stream.confirmed)

    def was_sent(self, record_class: RecordClass, seq: int) -> bool:
        """Tell whether this run has sent a row, or one above it; it may still be on its way."""
        return seq <= self._streams[record_class].sent_high

    def followed(self, record_class: RecordClass, high: int, now_ns: int) -> None:
        """The store has numbered rows again, `high` is the last number now: all that is unconfirmed is sent again."""
        stream = self._streams[record_class]
        stream.go_back()
        stream.unread.clear()
        stream.met = True
        stream.stored_high = max(stream.stored_high, high)
        self._more(record_class, now_ns)

    def doubt(self, classes: Iterable[RecordClass]) -> None:
        """No mark has come where one should be: find out with one record whether the numbers are still ours."""
        for name in classes:
            self._streams[name].doubted = True

    def heard(self, record_class: RecordClass) -> None:
        """A mark of the class has come and was looked into."""
        self._streams[record_class].doubted = False

    def needs_proof(self, record_class: RecordClass, ack: Ack) -> bool:
        """Tell whether a mark speaks of rows that are here and that the broker has not got from this run.

        An earlier run has sent them, or a clone of this device has sent others under their numbers. What was sent and
        never answered may be lost with its connection, as when the clone takes the session over.
        """
        stream = self._streams[record_class]
        known = max(stream.taken_high, stream.confirmed)
        return ack.epoch == self._epoch and known < ack.mark <= max(stream.sent_high, stream.stored_high)

    def taken_to(self, record_class: RecordClass) -> int:
        """Return up to which number the broker has taken everything, on this connection, that is not confirmed."""
        stream = self._streams[record_class]
        mark = stream.confirmed
        for batch in stream.batches:
            if not batch.taken:
                break
            mark = batch.last
        return mark

    def reached(self, record_class: RecordClass, epoch: str, taken: int, now_ns: int) -> int | None:
        """The bridge has a mark beyond all that was sent, which is not believed; return the mark if that confirms.

        When it came the broker had taken the rows up to `taken`. So far the mark says nothing but what every mark says:
        without that a backlog which the bridge has already, and cannot prove, would be sent again and again.
        """
        stream = self._streams[record_class]
        if epoch != self._epoch or not stream.confirmed < taken <= stream.sent_high:
            return None
        return self._confirm(stream, taken, now_ns)

    def expire(self, now_ns: int) -> tuple[RecordClass, ...]:
        """Send classes back whose acks are overdue; return them."""
        overdue = []
        for name, at in self._ack_deadlines():
            stream = self._streams[name]
            if at > now_ns:
                continue
            stream.go_back()
            if stream.untold:
                stream.untold = False  # nothing is wrong: what is sent again only says what the bridge waits for
                continue
            stream.timeouts += 1
            self._window.halve()
            overdue.append(name)
        return tuple(overdue)

    # ---- what to do ----------------------------------------------------------------------------------

    def next_want(self, now_ns: int, held: Collection[RecordClass] = ()) -> Want | None:
        """Return what to read and send now, or None while there is nothing, or no room.

        Classes that are `held` wait on purpose, so they do not age: once let go, hours of waiting must not put them
        before a fresh critical record.
        """
        if not self._connected:
            return None
        for name in held:
            self._streams[name].waiting_since_ns = now_ns
            self._streams[name].not_before_ns = 0
        for stream in self._streams.values():
            if stream.not_before_ns <= now_ns:  # over: no reason to look again
                stream.not_before_ns = 0
        ready = [name for name in CLASSES if name not in held and self._may_send(name, now_ns)]
        if not ready:
            return None
        name = min(ready, key=lambda each: self._rank(each, now_ns))
        stream = self._streams[name]
        share = PROBE_SHARE if stream.timeouts or stream.rejections else 1
        return Want(
            record_class=name,
            after_seq=stream.sent_to,
            max_records=1 if stream.doubted or stream.unheard else max(1, self._limits.batch_records // share),
            max_bytes=max(1024, self._limits.batch_bytes // share),
            turn=stream.turn,
            offers=stream.offers,
        )

    def is_stuck(self, now_ns: int) -> bool:
        """Tell whether the broker has left a batch unanswered for so long that the connection should be made anew.

        The same connection cannot be used for a second try: MQTT allows that only after a reconnect (§4.4). It may have
        been the link that is thin, so what was found stuck gets twice the time on the next one.
        """
        stuck = any(at <= now_ns for at in self._puback_deadlines())
        if stuck:
            self._patience.note_stuck()
        return stuck

    def deadline(self) -> int | None:
        """Return when to look again if nothing happens before, or None."""
        times = [at for _, at in self._ack_deadlines()]
        times += self._puback_deadlines()
        for stream in self._streams.values():
            if stream.not_before_ns and stream.has_more and self._connected:
                times.append(stream.not_before_ns)
        return min(times, default=None)

    # ---- how it stands -------------------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """The epoch that marks must carry."""
        return self._epoch

    @property
    def is_degraded(self) -> bool:
        """Whether records go out and no ack comes back, or the broker refuses them."""
        return any(stream.timeouts or stream.rejections or stream.unheard for stream in self._streams.values())

    @property
    def is_unheard(self) -> bool:
        """Whether the broker says that nobody takes what goes out."""
        return any(stream.unheard for stream in self._streams.values())

    @property
    def is_unacknowledged(self) -> bool:
        """Whether somebody takes what goes out, and no ack comes back."""
        return any(stream.timeouts for stream in self._streams.values())

    @property
    def confirmed(self) -> int:
        """How many numbers of this epoch are confirmed, in all classes together."""
        return sum(stream.confirmed for stream in self._streams.values())

    def progress(self) -> dict[RecordClass, ClassProgress]:
        """Return how far each class is."""
        return {
            name: ClassProgress(
                sent=stream.sent_high,
                confirmed=stream.confirmed,
                outstanding=len(stream.batches),
                resent_batches=stream.resent,
                timeouts=stream.timeouts,
            )
            for name, stream in self._streams.items()
        }

    # ---- inside --------------------------------------------------------------------------------------

    def _more(self, name: RecordClass, now_ns: int) -> None:
        stream = self._streams[name]
        stream.offers += 1
        if not stream.has_more:
            stream.has_more = True
            stream.waiting_since_ns = now_ns

    def _confirm(self, stream: Stream, mark: int, now_ns: int) -> int:
        """Take note that a stream is confirmed up to a mark, and beyond it as far as dead letters follow."""
        progress = mark > stream.confirmed
        stream.unread.sort()
        while stream.unread and stream.unread[0][0] <= mark:
            mark = max(mark, stream.unread.pop(0)[1])
        if not progress and mark == stream.confirmed:
            return mark
        if stream.unheard:  # somebody hears all the same: a broker that hands messages to more than subscribers
            self._names_the_deaf = False
            stream.unheard = 0
        stream.confirmed = mark
        stream.timeouts = 0
        stream.progress_ns = now_ns
        while stream.batches and stream.batches[0].last <= mark:
            self._window.steer(now_ns, stream.batches.popleft().sent_ns)
        if stream.sent_to < mark:  # it had been sent before: no need to send it again
            stream.sent_to = mark
            stream.turn += 1
        return mark

    def _may_send(self, name: RecordClass, now_ns: int) -> bool:
        stream = self._streams[name]
        if not stream.has_more or now_ns < stream.not_before_ns:
            return False
        if stream.batches and (stream.timeouts or stream.rejections or stream.unheard or stream.doubted):
            return False  # a probe is out
        room = self._window.room
        others = sum(len(each.batches) for key, each in self._streams.items() if key != "critical")
        critical = len(self._streams["critical"].batches)
        if name == "critical":
            return critical == 0 or critical + others < room
        # One place is for critical, which then never waits for an ack of something else.
        return others < max(1, room - 1) and critical + others < room

    def _rank(self, name: RecordClass, now_ns: int) -> float:
        waited = (now_ns - self._streams[name].waiting_since_ns) / (self._limits.ageing_seconds * SECOND)
        return CLASSES.index(name) - waited

    def _ack_deadlines(self) -> list[tuple[RecordClass, int]]:
        """When each class gives up waiting for the bridge: not before the broker has answered all its batches."""
        found: list[tuple[RecordClass, int]] = []
        for name, stream in self._streams.items():
            if stream.batches and all(batch.taken for batch in stream.batches):
                patience = self._limits.ack_timeout_seconds * 2.0 ** min(stream.timeouts, MAX_PATIENCE_DOUBLINGS)
                patience_ns = TELL_NS if stream.untold else int(patience * SECOND)
                found.append((name, stream.progress_ns + patience_ns))
        return found

    def _puback_deadlines(self) -> list[int]:
        """When the broker must have answered each batch."""
        batches = (batch for stream in self._streams.values() for batch in stream.batches)
        return [self._patience.deadline(batch.ticket, batch.sent_ns) for batch in batches if not batch.taken]
