"""Carries the outbox to the cloud bridge: the shell around `delivery`, which decides.

Rows leave the store only on the bridge's own acknowledgement. Each connection starts clean: the acks are retained
by the broker, so a session kept there would only bring yesterday's marks again.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final, Protocol

import structlog

from gateway.config import Cloud
from gateway.errors import OutboxError
from gateway.uplink.bulletin import Bulletin, BulletinDrops, Pump
from gateway.uplink.client import Publication
from gateway.uplink.delivery import Delivery, Limits, Want
from gateway.uplink.endpoint import Access
from gateway.uplink.exchange import (
    NO_MATCHING_SUBSCRIBERS,
    PACKET_TOO_LARGE,
    ConnectionLostError,
    ConnectOptions,
    Ending,
    Incoming,
    Outgoing,
    Terms,
)
from gateway.uplink.gate import Gate, LinkMeter
from gateway.uplink.link import LinkState, MqttClient
from gateway.uplink.network import NetworkBytes
from gateway.uplink.packetlimit import PacketLimit
from gateway.uplink.packing import Load
from gateway.uplink.presence import GatewayPresence
from gateway.uplink.withholding import KeepingStore, NotKeptError, Withholding
from gateway.wire.batch import CONTENT_FRAMED
from gateway.wire.errors import WireError
from gateway.wire.messages import CLASSES, Ack, Event, Measure, PipelineStatus, RecordClass, decode
from gateway.wire.topics import Address, address_of, filter_for, topic_for

log = structlog.get_logger()

SETTLE_SECONDS: Final = 0.1
"""Patience after a connection for the retained acks: they may save a whole window from being sent again."""
FIRST_SETTLE_SECONDS: Final = 2.0
"""The same for the first acks of a store of which something has gone before: only they tell that it is an old copy."""
LOOK_SECONDS: Final = 10.0
"""The store is asked so often what it holds, in case a notification was missed or it was opened anew."""
HELD_SECONDS: Final = 1.0
"""While a class waits for its budget or window, the meter is asked so often."""
PUBACK_SECONDS: Final = 30.0
"""A broker that leaves a batch unanswered for so long is left: only a new connection allows another try."""


class RecordStore(KeepingStore, Protocol):
    """What the uplink needs of the outbox. All methods block, and are called from worker threads."""

    @property
    def epoch(self) -> str:
        """The random id of the present store file."""
        ...

    def acknowledge(self, record_class: RecordClass, epoch: str, mark: int) -> int:
        """Let the rows up to the mark go; return how many went."""
        ...

    def follow(self, record_class: RecordClass, epoch: str, mark: int) -> bool:
        """Number rows again that the bridge cannot have, above a mark that speaks of other rows; see the outbox."""
        ...

    def heads(self) -> Mapping[RecordClass, tuple[int, int]]:
        """Return the lowest and highest sequence number present; a class without rows is absent."""
        ...


class Partition(StrEnum):
    """Whether the cloud can be reached."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # connected, but nothing is acknowledged
    PARTITIONED = "partitioned"


@dataclass(frozen=True, slots=True)
class ClassStatus:
    """How a class of records is doing. Marks are of the present epoch, counts since the start."""

    sent: int
    confirmed: int
    outstanding_batches: int
    resent_batches: int
    sent_records: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class UplinkStatus:
    """How the way to the cloud is."""

    link: LinkState
    partition: Partition
    classes: Mapping[RecordClass, ClassStatus]
    publish_errors: Mapping[str, int]  # by the reason the broker gave
    ignored_acks: int
    connects: int
    blocked: str  # why a class cannot be sent at all, in words; "" if all can
    blocked_classes: frozenset[RecordClass] = frozenset()
    withheld: Mapping[tuple[RecordClass, str], int] = field(default_factory=dict)  # rows replaced, by class and reason
    conflicts: Mapping[RecordClass, int] = field(default_factory=dict)  # numbers the bridge has for other records
    bad_topics: int = 0  # messages received without a usable topic
    overflows: int = 0  # messages received faster than they could be taken
    dropped_events: int = 0  # of those that are only shown: given up because too many waited
    dropped_measures: int = 0
    refused_messages: int = 0  # by the broker
    network: NetworkBytes = field(default_factory=NetworkBytes)  # estimated; zeros where nothing is metered


class Uplink:
    """The way to the cloud. `run` belongs to the event loop; `notify` and `publish_*` to any thread."""

    def __init__(
        self,
        cloud: Cloud,
        gateway_id: str,
        root: str,
        store: RecordStore,
        *,
        version: str = "",
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        on_conflict: Callable[[RecordClass, int], None] | None = None,
        meter: LinkMeter | None = None,
        access: Access | None = None,
    ) -> None:
        """Check the brokers; `run` connects. `on_conflict` is told, on the event loop, when `conflicts` has grown.

        Raises:
            ConfigError: there is no broker, or one cannot be used as configured.
        """
        self._store = store
        self._root = root
        self._gateway_id = gateway_id
        self._monotonic_ns = monotonic_ns
        self._topics = {name: topic_for(Address(gateway_id, "records", name), root) for name in CLASSES}
        self._delivery = Delivery(
            Limits(
                in_flight=cloud.in_flight,
                batch_records=cloud.batch_records,
                batch_bytes=cloud.batch_bytes,
                ack_timeout_seconds=cloud.ack_timeout_seconds,
                puback_timeout_seconds=max(PUBACK_SECONDS, 6 * cloud.ack_timeout_seconds),
            )
        )
        self._gate = Gate(meter, cloud.brokers, root)
        self._client = MqttClient(
            cloud.brokers,
            ConnectOptions(client_id=f"{root}-{gateway_id}", identity_client_id=gateway_id, in_flight=cloud.in_flight),
            self,
            presence=GatewayPresence(gateway_id, root, version, clock_ns),
            fail_back_seconds=cloud.fail_back_seconds,
            tap=self._gate.tap,
            access=access,
            clock_ns=clock_ns,
        )
        self._bulletin = Bulletin(gateway_id, root) if cloud.publish_events else None
        self._pump = (
            Pump(self._bulletin, self._client, cloud.in_flight, self._gate) if self._bulletin is not None else None
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._offers_lock = threading.Lock()
        self._offered: set[RecordClass] = set()
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._first_ack = asyncio.Event()
        self._awaited: set[RecordClass] = set()  # classes whose first ack of this run should be there at once
        self._marks: dict[RecordClass, tuple[str, int]] = {}
        self._marks_due = asyncio.Event()
        self._look_at_ns = 0
        self._heads: Mapping[RecordClass, tuple[int, int]] = {}  # as of the latest look
        self._store_is_away = False
        self._errors: Counter[str] = Counter()
        self._bad_acks = 0
        self._sent_records: Counter[RecordClass] = Counter()
        self._sent_bytes: Counter[RecordClass] = Counter()
        self._blocked: dict[RecordClass, str] = {}
        self._unkept: dict[RecordClass, str] = {}  # classes that wait for room to set a record aside, in words
        self._held: frozenset[RecordClass] = frozenset()
        self._overdue: set[RecordClass] = set()
        self._withholding = Withholding(store, gateway_id)
        self._packet_limit = PacketLimit()
        self._unanswered: dict[int, int] = {}  # payload bytes by ticket
        self._unproven: dict[RecordClass, Ack] = {}
        self._conflicts: dict[RecordClass, int] = {}
        self._on_conflict = on_conflict

    # ---- from any thread -----------------------------------------------------------------------------

    def notify(self, classes: Collection[RecordClass]) -> None:
        """Rows of these classes were committed; call it after the commit. Returns at once."""
        loop = self._loop
        if loop is None:
            return  # `run` looks at the store when it begins
        with self._offers_lock:
            idle = not self._offered
            self._offered.update(classes)
        if idle:
            try:
                loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:  # the loop is closed: the rows wait in the store
                return

    def publish_event(self, event: Event) -> None:
        """Show an event on the cloud's broker, if so configured."""
        if self._bulletin is not None:
            self._bulletin.put_event(event)

    def publish_status(self, status: PipelineStatus) -> None:
        """Show the status of a pipeline on the cloud's broker, if so configured."""
        if self._bulletin is not None:
            self._bulletin.put_status(status)

    def publish_measure(self, measure: Measure) -> None:
        """Show a measure on the cloud's broker, if so configured."""
        if self._bulletin is not None:
            self._bulletin.put_measure(measure)

    # ---- the event loop ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until cancelled, then say goodbye to the broker."""
        self._loop = asyncio.get_running_loop()
        await self._look()  # first: the retained acks of the first connection must find their epoch
        self._awaited = {name for name, (low, _) in self._heads.items() if low > 1}
        self._client.subscribe(filter_for("ack", gateway=self._gateway_id, root=self._root), self._acknowledged)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._client.run(), name="uplink-link")
                group.create_task(self._send_all(), name="uplink-send")
                group.create_task(self._confirm_all(), name="uplink-confirm")
                if self._pump is not None:
                    group.create_task(self._pump.run(), name="uplink-pump")
        finally:
            self._loop = None

    def renewed(self) -> None:
        """A new certificate is there: brokers that know us by one are shown it; nothing is lost or sent twice."""
        self._client.renewed()

    def status(self) -> UplinkStatus:
        """Return how the way to the cloud is."""
        shown = self._bulletin.drops if self._bulletin is not None else BulletinDrops()
        return UplinkStatus(
            link=self._client.state,
            partition=self.partition,
            classes={
                name: ClassStatus(
                    sent=progress.sent,
                    confirmed=progress.confirmed,
                    outstanding_batches=progress.outstanding,
                    resent_batches=progress.resent_batches,
                    sent_records=self._sent_records[name],
                    sent_bytes=self._sent_bytes[name],
                )
                for name, progress in self._delivery.progress().items()
            },
            publish_errors=dict(self._errors),
            ignored_acks=self._bad_acks + self._delivery.ignored_acks,
            connects=self._client.connects,
            blocked="; ".join([*self._blocked.values(), *self._unkept.values()]),
            blocked_classes=frozenset([*self._blocked, *self._unkept]),
            withheld=self._withholding.counts,
            conflicts=dict(self._conflicts),
            bad_topics=self._client.drops.bad_topic,
            overflows=self._client.drops.overflow,
            dropped_events=shown.events,
            dropped_measures=shown.measures,
            refused_messages=shown.refused,
            network=self._client.network,
        )

    @property
    def partition(self) -> Partition:
        """Whether the cloud can be reached."""
        if self._client.terms is None:
            return Partition.PARTITIONED
        waits = self._delivery.is_degraded or self._blocked or self._unkept
        return Partition.DEGRADED if waits else Partition.HEALTHY

    # ---- told by the client --------------------------------------------------------------------------

    def link_up(self, terms: Terms) -> None:
        """Called by the client: everything unconfirmed is sent again."""
        self._gate.link_up(self._client.broker, terms.maximum_qos)
        self._delivery.link_up(terms.receive_maximum, self._monotonic_ns())
        self._packet_limit.begin(self._client.state.broker)
        self._blocked.clear()
        self._unproven.clear()
        self._first_ack.clear()
        self._up.set()
        self._wake.set()
        if self._pump is not None:
            self._pump.link_up()

    def link_down(self, ending: Ending) -> None:
        """Called by the client: nothing that was sent will be answered."""
        if self._packet_limit.ended(ending, max(self._unanswered.values(), default=0)):
            log.warning("smaller_batches_tried", reason=ending.reason)
        self._unanswered.clear()
        self._up.clear()
        self._gate.link_down()
        self._delivery.link_down()
        self._wake.set()
        if self._pump is not None:
            self._pump.link_down()

    def parting(self) -> None:
        """Called by the client: the last words."""
        if self._pump is not None:
            self._pump.flush()

    # ---- sending -------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        while True:
            await self._up.wait()
            await self._settle()
            while self._up.is_set():
                await self._look()
                await self._prove()
                now = self._monotonic_ns()
                self._take_offers(now)
                for name in self._delivery.expire(now):
                    if name not in self._overdue:
                        log.warning("acks_overdue", record_class=name)
                        self._overdue.add(name)
                if self._delivery.is_stuck(now):
                    self._client.reconnect("the broker leaves messages unanswered")
                    break
                self._held = self._gate.held() | self._unproven.keys()
                want = self._delivery.next_want(now, self._held)
                if want is None:
                    await self._sleep(now)
                else:
                    await self._send(want)

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(FIRST_SETTLE_SECONDS if self._awaited else SETTLE_SECONDS):
                await self._first_ack.wait()
        except TimeoutError:
            self._delivery.doubt(self._awaited)
            self._awaited.clear()

    async def _look(self) -> None:
        """Ask the store what it holds, now and then."""
        now = self._monotonic_ns()
        if self._delivery.epoch and now < self._look_at_ns:
            return
        self._look_at_ns = now + int(LOOK_SECONDS * 1e9)
        try:
            epoch, heads = await asyncio.to_thread(lambda: (self._store.epoch, self._store.heads()))
        except OutboxError as error:
            self._store_away(error)
            return
        self._store_away(None)
        if epoch != self._delivery.epoch:
            self._conflicts.clear()  # they were counted in the old one
        self._heads = heads
        self._delivery.begin(epoch, heads)
        for name, progress in self._delivery.progress().items():
            if name in heads and heads[name][0] <= progress.confirmed:  # the store was away when they were confirmed
                self._marks.setdefault(name, (epoch, progress.confirmed))
                self._marks_due.set()

    def _take_offers(self, now_ns: int) -> None:
        with self._offers_lock:
            offered, self._offered = self._offered, set()
        self._delivery.offer(offered, now_ns)

    async def _sleep(self, now_ns: int) -> None:
        """Wait until something happens, or until it is time to look again."""
        times = [self._look_at_ns]
        if self._held:
            times.append(now_ns + int(HELD_SECONDS * 1e9))
        if (deadline := self._delivery.deadline()) is not None:
            times.append(deadline)
        seconds = max((min(times) - now_ns) / 1e9, 0.001)
        self._wake.clear()
        if self._offered:  # a notification that came before the clear
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _send(self, want: Want) -> None:
        """Read, pack and publish one batch."""
        terms = self._client.terms
        if terms is None:
            return
        around = Outgoing(self._topics[want.record_class], b"", content_type=CONTENT_FRAMED).packet_bytes
        limit = self._packet_limit.certain(terms.max_packet_bytes) - around
        preferred = self._packet_limit.preferred(terms.max_packet_bytes) - around
        if (room := self._gate.room(want.record_class)) is not None:
            preferred = min(preferred, max(room - around, 1))
        try:
            load = await asyncio.to_thread(self._withholding.load, want, limit, preferred)
        except NotKeptError as error:
            self._not_kept(want.record_class, error)
            self._delivery.rejected(want.record_class, None, self._monotonic_ns())
            return
        except OutboxError as error:
            self._store_away(error)
            self._delivery.nothing(want)
            return
        self._store_away(None)
        self._not_kept(want.record_class, None)
        if load is None:
            self._delivery.nothing(want)
            return
        now = self._monotonic_ns()
        if load.epoch != self._delivery.epoch:  # the store was opened anew
            self._look_at_ns = now
            self._delivery.nothing(want)
            return
        if load.packed is None:
            self._block(want.record_class, load, limit)
            self._delivery.rejected(want.record_class, None, now)
            return
        self._blocked.pop(want.record_class, None)
        batch = Outgoing(self._topics[want.record_class], load.packed.payload, content_type=load.packed.content_type)
        asks = self._gate.asks
        if asks and not await asyncio.to_thread(self._gate.admit, want.record_class, batch):
            return  # the class is held from now on
        ticket = None
        if want.record_class not in self._unproven:  # else a mark came meanwhile: it may be that numbers change
            ticket = self._delivery.sent(want, load.epoch, load.first, load.last, now)
        if ticket is None:
            if asks:
                self._gate.not_sent(want.record_class, batch)
            return
        size = len(load.packed.payload)
        self._sent_records[want.record_class] += load.records
        self._sent_bytes[want.record_class] += size
        self._unanswered[ticket] = size + around
        publication = self._client.publish(batch)
        publication.add_done_callback(partial(self._answered, want.record_class, ticket))

    def _answered(self, record_class: RecordClass, ticket: int, publication: Publication) -> None:
        """Take the broker's answer to a batch: it moves the clock, and confirms nothing."""
        if publication.cancelled():
            return
        now = self._monotonic_ns()
        error = publication.exception()
        if isinstance(error, ConnectionLostError):
            self._errors["connection lost"] += 1  # its size is looked at when the link is told to be down
            return
        size = self._unanswered.pop(ticket, 0)
        if error is not None:
            self._refused(record_class, ticket, str(error), now)
        elif (result := publication.result()).failed:
            if result.code == PACKET_TOO_LARGE and size:
                self._packet_limit.refused(size)
            self._refused(record_class, ticket, result.reason, now)
        else:
            self._packet_limit.answered()
            if result.code == NO_MATCHING_SUBSCRIBERS:
                self._errors[result.reason] += 1
            self._delivery.taken(record_class, ticket, now)
        self._wake.set()

    def _refused(self, record_class: RecordClass, ticket: int, reason: str, now_ns: int) -> None:
        if not self._errors[reason]:
            log.error("records_refused", record_class=record_class, reason=reason)
        self._errors[reason] += 1
        self._delivery.rejected(record_class, ticket, now_ns)

    def _block(self, record_class: RecordClass, load: Load, limit_bytes: int) -> None:
        words = (
            f"record {load.first} of class {record_class} does not fit the broker's limit of {limit_bytes} bytes; "
            "raise the maximum packet size there"
        )
        if self._blocked.get(record_class) != words:
            log.error("record_too_large", record_class=record_class, seq=load.first, limit_bytes=limit_bytes)
        self._blocked[record_class] = words

    def _not_kept(self, record_class: RecordClass, error: NotKeptError | None) -> None:
        """Note whether a class waits because a record of it can neither travel nor be set aside. It is tried again."""
        if error is None:
            if self._unkept.pop(record_class, None) is not None:
                log.info("class_goes_on", record_class=record_class)
            return
        if record_class not in self._unkept:
            log.error(
                "record_not_set_aside",
                record_class=record_class,
                error=str(error),
                remedy="take files away from the directory and import them, or raise the broker's maximum packet size",
            )
        self._unkept[record_class] = f"class {record_class} waits: {error}"

    def _store_away(self, error: OutboxError | None) -> None:
        if error is not None and not self._store_is_away:
            log.error("store_unreadable", error=str(error))
        elif error is None and self._store_is_away:
            log.info("store_readable_again")
        self._store_is_away = error is not None

    # ---- confirming ----------------------------------------------------------------------------------

    def _acknowledged(self, message: Incoming) -> None:
        try:
            address = address_of(message.topic, self._root)
            ack = decode(message.payload, Ack)
        except WireError as error:
            if not self._bad_acks:
                log.warning("ack_unreadable", error=str(error)[:200])
            self._bad_acks += 1
            return
        name = next((each for each in CLASSES if each == address.name), None)
        if name is None:
            self._bad_acks += 1
            return
        self._note_conflicts(name, ack)
        if self._delivery.needs_proof(name, ack) or self._delivery.is_ahead(name, ack):
            self._unproven[name] = ack
        else:
            self._unproven.pop(name, None)
            self._take_mark(name, ack)
        self._awaited.discard(name)
        if not self._awaited:
            self._first_ack.set()
        self._wake.set()

    async def _prove(self) -> None:
        """Look into marks of rows that this run has not sent, before anything is let go or sent."""
        for name in list(self._unproven):
            ack = self._unproven[name]
            try:
                if self._delivery.is_ahead(name, ack):
                    verdict = "other"
                else:
                    sent = self._delivery.sent_or_confirmed(name)
                    verdict = await asyncio.to_thread(self._withholding.verdict, name, ack.mark, ack.digest, sent)
            except OutboxError as error:
                # Not believed then: the rows are sent, and what the bridge has already it knows by their numbers.
                self._store_away(error)
                verdict = "unsent"
            if verdict == "other" and not await self._follow(name, ack):
                continue
            self._delivery.heard(name)
            if self._unproven.get(name) is ack:
                del self._unproven[name]
            if verdict == "same":
                self._take_mark(name, ack)

    async def _follow(self, name: RecordClass, ack: Ack) -> bool:
        """Hand a mark over that speaks of rows which are not ours; False: the store does not answer, ask it again."""
        if self._delivery.has_met(name):
            followed = False
        else:
            try:
                followed = await asyncio.to_thread(self._store.follow, name, ack.epoch, ack.mark)
                heads = await asyncio.to_thread(self._store.heads)
            except OutboxError as error:
                self._store_away(error)  # the class is held meanwhile: a row that was sent must not change its number
                return False
            if followed:
                self._delivery.followed(name, max(ack.mark, heads.get(name, (0, 0))[1]), self._monotonic_ns())
                return True
        if self._delivery.is_ahead(name, ack):
            self._take_mark(name, ack)  # it is counted as one that nothing here matches
            return True
        log.error(
            "mark_of_another",
            record_class=name,
            mark=ack.mark,
            remedy="the cloud has other records under the numbers of this store: it was cloned, or put back "
            "from a copy; give each device an id and a state directory of its own",
        )
        self._bad_acks += 1
        return True

    def _note_conflicts(self, name: RecordClass, ack: Ack) -> None:
        if ack.epoch != self._delivery.epoch or ack.conflicts <= self._conflicts.get(name, 0):
            return
        log.error(
            "identity_in_conflict",
            record_class=name,
            conflicts=ack.conflicts,
            remedy="another device writes under this gateway's id and store; the cloud keeps its records as dead "
            "letters; give each device an id and a state directory of its own",
        )
        self._conflicts[name] = ack.conflicts
        if self._on_conflict is not None:
            self._on_conflict(name, ack.conflicts)

    def _take_mark(self, name: RecordClass, ack: Ack) -> None:
        mark = self._delivery.acknowledged(name, ack, self._monotonic_ns())
        if mark is not None:
            if name in self._overdue:
                log.info("acks_are_back", record_class=name)
                self._overdue.discard(name)
            self._marks[name] = (ack.epoch, mark)
            self._marks_due.set()

    async def _confirm_all(self) -> None:
        """Let acknowledged rows go, the latest mark of each class at a time."""
        while True:
            await self._marks_due.wait()
            self._marks_due.clear()
            marks, self._marks = self._marks, {}
            for name, (epoch, mark) in marks.items():
                try:
                    await asyncio.to_thread(self._store.acknowledge, name, epoch, mark)
                except OutboxError as error:
                    # The rows stay; the next look at the store finds them and lets them go.
                    self._store_away(error)
