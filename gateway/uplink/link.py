"""Keeps one client connected: to the first broker of a list that can be reached, for as long as the gateway runs."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, Protocol

import structlog

from gateway.config import Broker
from gateway.uplink.backoff import Backoff
from gateway.uplink.candidates import Candidate, Candidates
from gateway.uplink.client import MqttConnection, Publication
from gateway.uplink.endpoint import Access, FileAccess
from gateway.uplink.exchange import (
    ConnectionLostError,
    ConnectionRefusedByBrokerError,
    ConnectOptions,
    Drops,
    Ending,
    Incoming,
    Outgoing,
    Terms,
)
from gateway.uplink.network import NetworkBytes
from gateway.uplink.receipts import Receipts
from gateway.uplink.subscriptions import Handler, Subscriptions
from gateway.uplink.traffic import Tap

log = structlog.get_logger()

State = Literal["connecting", "connected", "refused", "waiting", "stopped"]

GOODBYE_SECONDS: Final = 2.0
MAX_THREADS_LEFT_BEHIND: Final = 4
AWAITING_SECONDS: Final = 5.0
"""While there is no certificate to show, it is looked for so often, in case nobody says that one has come."""
RENEWAL_SECONDS: Final = 5.0
"""Patience for the answers that are due before a connection is made anew to show a new certificate."""
RESUMED_SECONDS: Final = 60
"""The broker keeps our session for so long, so that nothing is lost while a connection is made anew (MQTT 5)."""
WATCH_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class LinkState:
    """How the link is, in words for a status page."""

    state: State
    broker: str = ""
    reason: str = ""
    since_ns: int = 0  # UTC


class Presence(Protocol):
    """What is published, retained, about whether this client is there."""

    @property
    def topic(self) -> str:
        """Where."""
        ...

    def online(self) -> bytes:
        """Right after a connection."""
        ...

    def stopped(self) -> bytes:
        """When it ends on purpose."""
        ...

    def offline(self) -> bytes:
        """By the broker, when the connection is lost; made when connecting."""
        ...

    def is_denied_by(self, payload: bytes) -> bool:
        """Whether a message there says that this client is gone."""
        ...


class Owner(Protocol):
    """What is told to whoever uses the link, on the event loop; nothing here may block or raise."""

    def link_up(self, terms: Terms) -> None:
        """A connection is there and the subscriptions are asked for."""
        ...

    def link_down(self, ending: Ending) -> None:
        """The connection is gone; all that was published on it and not answered has failed."""
        ...

    def parting(self) -> None:
        """The link is about to end on purpose: publish now what must still go out."""
        ...


_RENEWED: Final = Ending("unreachable", "the certificate was renewed", renewal=True)


def _no_tap() -> None:
    return None


def _nothing() -> None:
    return


class MqttClient:
    """A client that stays connected. All methods belong to the event loop it runs on."""

    def __init__(
        self,
        brokers: Sequence[Broker],
        options: ConnectOptions,
        owner: Owner,
        *,
        presence: Presence | None = None,
        backoff: Backoff | None = None,
        fail_back_seconds: float = 300.0,
        tap: Callable[[], Tap | None] = _no_tap,
        access: Access | None = None,
        receipts: Receipts | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Check the brokers; nothing is connected yet.

        `tap` makes the listener of each connection; `access` is what is shown to brokers, by default what their files
        say; with `receipts`, messages are acknowledged when their handlers, and whoever these let hold them, are done.

        Raises:
            ConfigError: a broker cannot be used as configured.
        """
        self._candidates = Candidates(brokers, backoff or Backoff(), monotonic=monotonic, draw=draw)
        self._options = options
        self._owner = owner
        self._presence = presence
        self._fail_back_seconds = fail_back_seconds
        self._tap = tap
        self._access = access or FileAccess()
        self._receipts = receipts
        self._woken = asyncio.Event()  # a certificate has come
        self._give_up_at = float("inf")  # monotonic; until then answers are waited for before a renewal
        self._resuming = False  # the last connection has been left only to make this one
        self._subscriptions = Subscriptions(self._unsubscribe)
        self._network = NetworkBytes()  # of earlier connections
        self._present: Candidate | None = None
        self._parting = False
        if presence is not None:
            self._subscriptions.add(presence.topic, self._contradict)
        self._clock_ns = clock_ns
        self._monotonic = monotonic
        self._connection: MqttConnection | None = None
        self._left_behind: list[MqttConnection] = []
        self._terms: Terms | None = None
        self.drops = Drops()
        self.connects = 0
        self.state = LinkState("connecting", str(self._candidates.first.endpoint), "", clock_ns())

    # ---- use -----------------------------------------------------------------------------------------

    @property
    def terms(self) -> Terms | None:
        """What the present server granted; None while not connected."""
        return self._terms

    @property
    def broker(self) -> Broker | None:
        """The broker of the list that is connected, or was last."""
        return self._present.broker if self._present is not None else None

    @property
    def network(self) -> NetworkBytes:
        """What all connections cost on the network, estimated; zeros without a tap."""
        connection = self._connection
        return self._network if connection is None else self._network.plus(connection.network)

    def has_held_back(self, within_seconds: float) -> bool:
        """Tell whether something was left unread of late because enough is at hand: the broker's answers wait there."""
        connection = self._connection
        if connection is None or not connection.held_back_ns:
            return False
        return time.monotonic_ns() - connection.held_back_ns < within_seconds * 1e9

    def publish(self, message: Outgoing) -> Publication:
        """Put a message in line; its future fails with `ConnectionLostError` if the connection ends first."""
        if self._connection is None or self._terms is None:
            future: Publication = asyncio.get_running_loop().create_future()
            future.set_exception(ConnectionLostError("not connected"))
            return future
        return self._connection.publish(message)

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Have a handler called with every message of a filter, now and after every reconnect."""
        new = self._subscriptions.add(topic_filter, handler)
        if new and self._connection is not None and self._terms is not None:
            self._ask(self._connection, [topic_filter])

    def reconnect(self, reason: str) -> None:
        """Give the present connection up and make another."""
        if self._connection is not None:
            self._connection.abandon(Ending("busy", reason))

    async def pass_over(self, reason: str) -> bool:
        """Leave the present broker for another one of the list, if one takes connections; tell whether it was left."""
        present, connection = self._present, self._connection
        if present is None or connection is None or not await self._candidates.another(present, self._access):
            return False
        if connection is self._connection:
            self._candidates.pass_over(present, self._fail_back_seconds)
            connection.abandon(Ending("busy", reason))
        return True

    def heard(self) -> None:
        """A bridge answers behind the present broker."""
        if self._present is not None:
            self._present.heard()

    def renewed(self) -> None:
        """A new certificate is there: try at once where one was missing, and show it where the old one is in use.

        A connection that stands is left only after the broker has answered what was sent, and made again at once; with
        MQTT 5 the broker keeps the session meanwhile.
        """
        self._candidates.certificate_came()
        if self._connection is not None and self._present is not None and self._present.broker.identity:
            self._give_up_at = self._monotonic() + RENEWAL_SECONDS
            self._connection.finish(_RENEWED)
        self._woken.set()

    async def run(self) -> None:
        """Stay connected until cancelled; then say goodbye."""
        try:
            while True:
                candidate = await self._choose()
                ending = await self._live(candidate)
                if ending.renewal:
                    candidate.forgive()
                    self._resuming = True
                else:
                    self._settle(candidate, ending)
        finally:
            await self._say_goodbye()

    # ---- one life ------------------------------------------------------------------------------------

    async def _choose(self) -> Candidate:
        """Return the first broker of the list that may be tried now; wait until there is one."""
        while True:
            self._left_behind = [each for each in self._left_behind if each.thread_alive]
            now = self._monotonic()
            self._woken.clear()
            ready = [candidate for candidate in self._candidates if not self._awaits(candidate)]
            chosen = self._candidates.to_try(ready, now)
            if chosen is not None and len(self._left_behind) < MAX_THREADS_LEFT_BEHIND:
                return chosen
            wait = min((candidate.not_before - now for candidate in ready), default=AWAITING_SECONDS)
            if len(ready) < len(self._candidates):
                wait = min(wait, AWAITING_SECONDS)
            await self._rest(max(wait, 0.02) if wait > 0 else 1.0)

    def _awaits(self, candidate: Candidate) -> bool:
        """Tell whether a broker cannot be tried because there is nothing to show to it."""
        reason = self._access.awaited(candidate.broker)
        if reason and not candidate.awaiting:
            log.warning("mqtt_waits_for_identity", broker=str(candidate.endpoint), reason=reason)
        if reason and self._connection is None:
            self._tell("waiting", candidate, reason)
        candidate.awaiting = bool(reason)
        return candidate.awaiting

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _live(self, candidate: Candidate) -> Ending:
        """Connect, and stay until the connection ends."""
        if self.state.state != "refused":  # a refusal stays to be read until a connection succeeds
            self._tell("connecting", candidate, self.state.reason)
        presence = self._presence
        will = (presence.topic, presence.offline()) if presence is not None else None
        connection = MqttConnection(
            candidate.broker,
            candidate.endpoint,
            replace(self._options_for(candidate), will=will),
            self._subscriptions.dispatch,
            self.drops,
            access=self._access,
            receipts=self._receipts,
            tap=self._tap(),
            clock_ns=self._clock_ns,
        )
        self._present = candidate
        self._connection = connection
        self._give_up_at = float("inf")
        self._resuming = False
        connection.start()
        try:
            return await self._use(connection, candidate, await self._opened(connection))
        except ConnectionRefusedByBrokerError as error:
            if error.ending.doubt:
                self._access.doubted(candidate.broker)
            return error.ending
        finally:
            if connection.closed.done():
                self._network = self._network.plus(connection.network)
                self._connection = self._terms = None
                if connection.thread_alive:
                    self._left_behind.append(connection)

    def _options_for(self, candidate: Candidate) -> ConnectOptions:
        options = self._options
        if not candidate.broker.identity:
            return options
        options = replace(options, client_id=options.identity_client_id or options.client_id)
        if candidate.broker.protocol != "5":  # a session that no expiry ends would stay for ever
            return options
        expiry = max(options.session_expiry_seconds, RESUMED_SECONDS)
        return replace(options, session_expiry_seconds=expiry, clean_start=options.clean_start and not self._resuming)

    async def _opened(self, connection: MqttConnection) -> Terms:
        # The connect time-out covers TCP and TLS; a name that does not resolve, or no CONNACK, take longer.
        limit = 3 * self._options.connect_timeout_seconds
        try:
            async with asyncio.timeout(limit):
                return await asyncio.shield(connection.opened)
        except TimeoutError:
            connection.abandon(Ending("unreachable", f"no connection within {limit:g} s"))
            return await connection.opened

    async def _use(self, connection: MqttConnection, candidate: Candidate, terms: Terms) -> Ending:
        self._terms = terms
        self.connects += 1
        candidate.told = None
        log.info("mqtt_connected", broker=str(candidate.endpoint), client_id=terms.client_id)
        if self._presence is not None:
            _ignore(connection.publish(Outgoing(self._presence.topic, self._presence.online(), retain=True)))
        if filters := self._subscriptions.filters:
            # Until it has granted them, what others publish for us goes past: nobody should be told to rely on us yet.
            self._tell("connecting", candidate, "the broker has not granted the subscriptions yet")
            self._ask(connection, filters, partial(self._tell, "connected", candidate, ""))
        else:
            self._tell("connected", candidate, "")
        self._owner.link_up(terms)
        began = self._monotonic()
        fail_back_at = began + self._fail_back_seconds
        stuck = 0
        try:
            while not connection.closed.done():
                await asyncio.wait({connection.closed}, timeout=WATCH_SECONDS)
                if self._monotonic() >= self._give_up_at:
                    connection.abandon(_RENEWED)
                stuck = stuck + 1 if connection.is_stuck(time.monotonic_ns(), 5 * WATCH_SECONDS) else 0
                if stuck > 1:  # seen twice: once may be this whole process having been stopped for a while
                    connection.abandon(Ending("busy", "the network thread hangs or is dead"))
                if self._monotonic() >= fail_back_at:
                    fail_back_at = self._monotonic() + self._fail_back_seconds
                    if (better := await self._candidates.back_above(candidate, self._access)) is not None:
                        connection.abandon(Ending("unreachable", f"{better.endpoint} is back"))
        finally:
            if connection.closed.done():
                self._terms = None
                candidate.lived(self._monotonic() - began)
                self._owner.link_down(connection.closed.result())
        return connection.closed.result()

    def _settle(self, candidate: Candidate, ending: Ending) -> None:
        """Take note that a connection is over, or could not be made."""
        ending = self._candidates.settle(candidate, ending, self._options_for(candidate).client_id)
        self._tell("refused" if ending.lane == "refused" else "waiting", candidate, ending.reason)

    async def _say_goodbye(self) -> None:
        connection = self._connection
        if connection is None or connection.closed.done():
            self._tell("stopped", None, "")
            return
        terms = self._terms
        self._parting = True
        if terms is not None:
            self._owner.parting()
            if self._presence is not None:
                last = connection.publish(Outgoing(self._presence.topic, self._presence.stopped(), retain=True))
                _ignore(last)
                await asyncio.wait({last}, timeout=GOODBYE_SECONDS)
        connection.stop()
        await asyncio.wait({connection.closed}, timeout=GOODBYE_SECONDS)
        connection.abandon(Ending("unreachable", "stopped"))
        self._network = self._network.plus(connection.network)
        self._connection = self._terms = None
        if terms is not None:
            self._owner.link_down(Ending("unreachable", "stopped"))
        self._tell("stopped", None, "")

    # ---- inside --------------------------------------------------------------------------------------

    def _contradict(self, message: Incoming) -> None:
        """Say again that this client is there, when another connection of it has been said to be gone."""
        presence = self._presence
        if presence is None or self._parting or not presence.is_denied_by(message.payload):
            return
        # What is retained at the time of the subscription is of an earlier run, and already overwritten.
        if not message.retained and self._connection is not None:
            log.info("presence_repeated", broker=self.state.broker)
            _ignore(self._connection.publish(Outgoing(presence.topic, presence.online(), retain=True)))

    def _ask(self, connection: MqttConnection, filters: Sequence[str], answered: Callable[[], None] = _nothing) -> None:
        def look(future: asyncio.Future[tuple[int, ...]]) -> None:
            if future.cancelled() or future.exception() is not None or connection is not self._connection:
                return
            answered()
            refused = [each for each, code in zip(filters, future.result(), strict=False) if code >= 0x80]
            if refused:
                log.error("mqtt_subscription_refused", filters=refused)
                self.state = replace(self.state, reason=f"subscription refused: {', '.join(refused)}")

        connection.subscribe(filters).add_done_callback(look)

    def _unsubscribe(self, topic_filter: str) -> bool:
        if self._connection is None:
            return False
        self._connection.unsubscribe(topic_filter)
        return True

    def _tell(self, state: State, candidate: Candidate | None, reason: str) -> None:
        broker = str(candidate.endpoint) if candidate is not None else self.state.broker
        since = self.state.since_ns if state == self.state.state else self._clock_ns()
        self.state = LinkState(state, broker, reason, since)


def _ignore(future: Publication) -> None:
    """Take the outcome of a message whose fate does not matter."""
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
