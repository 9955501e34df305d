"""Carries the outbox to the cloud bridge: the shell around `delivery`, which decides.

Rows leave the store only on the bridge's own acknowledgement. Each connection starts clean: the acks are retained
by the broker, so a session kept there would only bring yesterday's marks again.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from gateway.config import Cloud
from gateway.errors import OutboxError
from gateway.threads import Worker
from gateway.uplink.bulletin import Bulletin, BulletinDrops, Pump
from gateway.uplink.client import Publication
from gateway.uplink.custody import Custody, Part
from gateway.uplink.delivery import Delivery, Limits, Want
from gateway.uplink.endpoint import Access
from gateway.uplink.exchange import (
    NO_MATCHING_SUBSCRIBERS,
    PACKET_TOO_LARGE,
    ConnectionLostError,
    ConnectOptions,
    Ending,
    Outgoing,
    Terms,
)
from gateway.uplink.gate import Gate, LinkMeter
from gateway.uplink.link import LinkState, MqttClient
from gateway.uplink.marks import Marks, RecordStore, StoreWatch
from gateway.uplink.packetlimit import PacketLimit
from gateway.uplink.packing import Load
from gateway.uplink.parts import PartExchange
from gateway.uplink.presence import GatewayPresence
from gateway.uplink.status import ClassStatus, Partition, UplinkStatus
from gateway.uplink.subscriptions import Handler
from gateway.uplink.unanswered import Unanswered, reason_of
from gateway.uplink.withholding import NotKeptError, Withholding
from gateway.wire.batch import CONTENT_FRAMED
from gateway.wire.messages import CLASSES, Event, Measure, PipelineStatus, RecordClass
from gateway.wire.topics import Address, filter_for, topic_for

log = structlog.get_logger()

LOOK_SECONDS: Final = 10.0
"""The store is asked so often what it holds, in case a notification was missed or it was opened anew."""
HELD_SECONDS: Final = 1.0
"""While a class waits for its budget or window, the meter is asked so often."""
PUBACK_SECONDS: Final = 30.0
"""A broker that leaves a batch unanswered for so long is left: only a new connection allows another try."""


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
        self.parts = PartExchange(self._client, gateway_id, root)  # for files that can come no other way
        self._bulletin = Bulletin(gateway_id, root) if cloud.publish_events else None
        self._pump = (
            Pump(self._bulletin, self._client, cloud.in_flight, self._gate) if self._bulletin is not None else None
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._offers_lock = threading.Lock()
        self._offered: set[RecordClass] = set()
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._look_at_ns = 0
        self._heads: Mapping[RecordClass, tuple[int, int]] = {}  # as of the latest look
        self._watch = StoreWatch()
        self._errors: Counter[str] = Counter()
        self._sent_records: Counter[RecordClass] = Counter()
        self._sent_bytes: Counter[RecordClass] = Counter()
        self._blocked: dict[RecordClass, str] = {}
        self._unkept: dict[RecordClass, str] = {}  # classes that wait for room to set a record aside, in words
        self._held: frozenset[RecordClass] = frozenset()
        self._unheard: set[RecordClass] = set()  # classes whose last batch the broker had nobody for
        self._withholding = Withholding(store, gateway_id)
        self._worker = Worker("uplink-store")
        # Twice what may be in flight: an answer may come after the same rows were sent again.
        self._custody = Custody(2 * cloud.in_flight)
        self._marks = Marks(
            root,
            store,
            self._delivery,
            self._withholding,
            self._custody,
            worker=self._worker,
            watch=self._watch,
            woken=self._wake.set,
            monotonic_ns=monotonic_ns,
            on_conflict=on_conflict,
        )
        self._packet_limit = PacketLimit()
        self._unanswered: dict[int, int] = {}  # payload bytes by ticket
        self._bridge = Unanswered()

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
        try:
            await self._look()  # first: the retained acks of the first connection must find their epoch
            self._marks.expect(name for name, (low, _) in self._heads.items() if low > 1)
            self._client.subscribe(filter_for("ack", gateway=self._gateway_id, root=self._root), self._marks.take)
            self.parts.begin(self._loop)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._client.run(), name="uplink-link")
                group.create_task(self._send_all(), name="uplink-send")
                group.create_task(self._marks.confirm_all(), name="uplink-confirm")
                if self._pump is not None:
                    group.create_task(self._pump.run(), name="uplink-pump")
        finally:
            self.parts.end()
            self._worker.close()
            self._loop = None

    def renewed(self) -> None:
        """A new certificate is there: brokers that know us by one are shown it; nothing is lost or sent twice."""
        self._client.renewed()

    def follow(self, topic_filter: str, handler: Handler) -> None:
        """Have a handler called, on the event loop, with every message of a filter, now and after every reconnect."""
        self._client.subscribe(topic_filter, handler)

    def tell(self, message: Outgoing) -> None:
        """Publish a message whose loss is noticed elsewhere, as when the connection ends."""
        self._client.publish(message).add_done_callback(_let_be)

    def status(self) -> UplinkStatus:
        """Return how the way to the cloud is."""
        shown = self._bulletin.drops if self._bulletin is not None else BulletinDrops()
        return UplinkStatus(
            link=self._link_state(),
            partition=self.partition,
            classes={
                name: ClassStatus(
                    sent=progress.sent,
                    confirmed=progress.confirmed,
                    outstanding_batches=progress.outstanding,
                    resent_batches=progress.resent_batches,
                    sent_records=self._sent_records[name],
                    sent_bytes=self._sent_bytes[name],
                    unread_records=self._marks.unread_records[name],
                )
                for name, progress in self._delivery.progress().items()
            },
            publish_errors=dict(self._errors),
            ignored_acks=self._marks.ignored + self._delivery.ignored_acks,
            connects=self._client.connects,
            blocked="; ".join([*self._blocked.values(), *self._unkept.values()]),
            blocked_classes=frozenset([*self._blocked, *self._unkept]),
            withheld=self._withholding.counts,
            conflicts=dict(self._marks.conflicts),
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

    def _link_state(self) -> LinkState:
        state = self._client.state
        if state.state == "connected" and not state.reason:
            return replace(state, reason=reason_of(self._delivery))
        return state

    # ---- told by the client --------------------------------------------------------------------------

    def link_up(self, terms: Terms) -> None:
        """Called by the client: everything unconfirmed is sent again."""
        self._gate.link_up(self._client.broker, terms.maximum_qos)
        self._delivery.link_up(terms.receive_maximum, self._monotonic_ns())
        self._bridge.begin()
        self._packet_limit.begin(self._client.state.broker)
        self._blocked.clear()
        self._marks.link_up()
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
            await self._marks.settle()
            while self._up.is_set():
                await self._look()
                await self._marks.prove()
                now = self._monotonic_ns()
                self._take_offers(now)
                self._marks.expire(now)
                if self._delivery.is_stuck(now):
                    self._client.reconnect("the broker leaves messages unanswered")
                    break
                if await self._is_forsaken(now):
                    break
                self._held = self._gate.held() | frozenset(self._marks.unproven)
                want = self._delivery.next_want(now, self._held)
                if want is None:
                    await self._sleep(now)
                else:
                    await self._send(want)

    async def _is_forsaken(self, now_ns: int) -> bool:
        """Leave a broker behind which no bridge answers, if there is another one; tell whether it was left."""
        if self._bridge.hears(self._delivery.confirmed):
            self._client.heard()
        reason = reason_of(self._delivery)
        if not self._bridge.is_over(now_ns, reason):
            return False
        self._bridge.left()  # also where there is no other: that is not looked for all the time
        return await self._client.pass_over(reason)

    async def _look(self) -> None:
        """Ask the store what it holds, now and then."""
        now = self._monotonic_ns()
        if self._delivery.epoch and now < self._look_at_ns:
            return
        self._look_at_ns = now + int(LOOK_SECONDS * 1e9)
        try:
            epoch, heads = await self._worker.do(lambda: (self._store.epoch, self._store.heads()))
        except OutboxError as error:
            self._watch.away(error)
            return
        self._watch.here()
        self._heads = heads
        self._marks.began(epoch, heads)

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
        told = self._custody.told(want.record_class, self._delivery.epoch)
        try:
            load = await self._worker.do(self._withholding.load, want, limit, preferred, told)
        except NotKeptError as error:
            self._not_kept(want.record_class, error)
            self._delivery.rejected(want.record_class, None, self._monotonic_ns())
            return
        except OutboxError as error:
            self._watch.away(error)
            self._delivery.nothing(want)
            return
        self._watch.here()
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
        if asks and not await self._worker.do(self._gate.admit, want.record_class, batch):
            return  # the class is held from now on
        ticket = None
        if want.record_class not in self._marks.unproven:  # else a mark came meanwhile: it may be that numbers change
            ticket = self._delivery.sent(want, load.epoch, load.first, load.last, now)
        if ticket is None:
            if asks:
                self._gate.not_sent(want.record_class, batch)
            return
        size = len(load.packed.payload)
        self._sent_records[want.record_class] += load.records
        self._sent_bytes[want.record_class] += size
        self._unanswered[ticket] = size + around
        part = Part(load.epoch, want.after_seq, load.first, load.last, load.records)
        self._custody.sent(want.record_class, load.digest, part)
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
                self._nobody_listens(record_class)
                self._delivery.unheard(record_class, ticket, now)
            else:
                self._heard(record_class)
                self._delivery.taken(record_class, ticket, now)
        self._wake.set()

    def _nobody_listens(self, record_class: RecordClass) -> None:
        if record_class not in self._unheard:
            log.warning("no_bridge_listens", record_class=record_class, remedy="start the bridge, or look at its link")
            self._unheard.add(record_class)

    def _heard(self, record_class: RecordClass) -> None:
        if record_class in self._unheard:
            log.info("bridge_listens_again", record_class=record_class)
            self._unheard.discard(record_class)

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


def _let_be(publication: Publication) -> None:
    """Take the outcome of a message, which nobody waits for."""
    if not publication.cancelled():
        publication.exception()
