"""The connection that tells devices their desired twins and takes what they report. One for each broker.

It is none of the connections of ingest: records neither wait for a rollout, nor it for them. What is told is not
remembered beyond a connection: a broker may have lost what it retained, so after each connect all twins are told again,
at a measured pace. A device that has a twin already passes over it. It is also told again to a device that says that
what lies there in its place does not count (`cloud_bridge.twins.again`).
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Database
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.twins.again import PAUSE_NS, Again
from cloud_bridge.twins.desired import due_tokens, one_desired, overtake
from cloud_bridge.twins.forgotten import forgotten_devices, welcome_back
from cloud_bridge.twins.metrics import TwinMetrics
from cloud_bridge.twins.reported import put_report
from gateway.wire.errors import MalformedMessageError, MalformedTopicError
from gateway.wire.messages import Twin, decode, encode
from gateway.wire.tokens import of_report_ms
from gateway.wire.topics import Address, address_of, topic_for

log = structlog.get_logger()

_BATCH: Final = 200
_BATCH_BYTES: Final = 8 * 1024 * 1024
_IDLE_SECONDS: Final = 0.25
_LOOK_NS: Final = 1_000_000_000
"""Between two looks for twins that are due, while none was."""
_MAX_REPORT_BYTES: Final = 256 * 1024
_TROUBLED_REMEMBERED: Final = 1000
_BEYOND: Final = (
    "the device has taken a token that is none of this bridge, or its clock or ours is wrong by years: it takes no "
    "twin of ours; its newest program, restarted, forgets such a token"
)
_OVERTAKEN: Final = (
    "the device had a higher token than its twin, as where the database was put back from an older copy; or its twin "
    "had one that no device believes, of a clock here that was decades ahead"
)
_FIRST_DELAY_SECONDS: Final = 0.1
_MAX_DELAY_SECONDS: Final = 5.0


class Messages(Protocol):
    """What `cloud_bridge.ingest.consumer.Consumer` is to this connection."""

    @property
    def connected(self) -> bool: ...
    @property
    def connection(self) -> int: ...
    def check(self) -> None: ...
    def gather(self, messages: int, size_bytes: int, timeout_seconds: float) -> list[Incoming]: ...
    def acknowledge(self, messages: Sequence[Incoming]) -> int: ...
    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> bool: ...


class TwinLink:
    """One thread calls `turn` again and again; it blocks for a moment while nothing comes."""

    def __init__(
        self,
        messages: Messages,
        database: Database,
        metrics: TwinMetrics,
        *,
        root: str,
        twins_per_second: float,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._messages = messages
        self._database = database
        self._metrics = metrics
        self._root = root
        self._pace = twins_per_second
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._told: dict[str, tuple[int, int]] = {}  # by gateway: the token, and when
        self._again = Again()
        self._connection = 0  # the one on which what was told was told
        self._allowance = 0.0
        self._look_ns = 0
        self._counted_ns = monotonic_ns()
        self._bad: set[str] = set()
        self._refused: dict[str, str] = {}  # by gateway: the code that was told
        self._held: list[Incoming] = []
        self._failing = False
        self._delay_seconds = _FIRST_DELAY_SECONDS

    def turn(self) -> float:
        """Take what came, keep it, and tell what is due.

        Returns for how many seconds to rest before the next turn: 0 unless the database is away, for then nothing here
        waits for a message.

        Raises:
            BrokerError: the link has died; make a new one.
        """
        self._messages.check()
        self._held += self._messages.gather(_BATCH, _BATCH_BYTES, _IDLE_SECONDS) if len(self._held) < _BATCH else []
        try:
            if self._held:
                self._keep(self._held)
                self._messages.acknowledge(self._held)  # after the commit, as everywhere
                self._held = []
            self._publish()
        except StoreError as error:
            if not self._failing:
                log.error("twins_wait_for_store", error=str(error))
            self._failing = True
            delay, self._delay_seconds = self._delay_seconds, min(self._delay_seconds * 2, _MAX_DELAY_SECONDS)
            return delay * random.uniform(0.75, 1.25)
        if self._failing:
            log.info("twins_go_on")
        self._failing = False
        self._delay_seconds = _FIRST_DELAY_SECONDS
        return 0.0

    def _keep(self, messages: Sequence[Incoming]) -> None:
        now_ns = self._wall_ns()
        overtaken: list[tuple[str, int]] = []
        refusals: list[tuple[str, Twin]] = []
        live: list[tuple[str, Twin]] = []
        with self._database.transaction() as tx:
            forgotten = forgotten_devices(tx)
            for message in messages:
                found = self._report_of(message)
                if found is None:
                    continue
                gateway, twin = found
                if gateway in forgotten:
                    if message.retained:
                        continue
                    welcome_back(tx, gateway)
                put_report(tx, gateway, message.payload, twin, now_ns)
                refusals.append((gateway, twin))
                if not message.retained:  # else it was said before this connection, on which all twins are told
                    live.append((gateway, twin))
                token = overtake(tx, gateway, twin.fencing_token, now_ns)
                if token is not None:
                    overtaken.append((gateway, token))
        self._metrics.reports.inc(len(messages))
        for gateway, twin in refusals:
            self._tell_refusal(gateway, twin, now_ns)
        for gateway, twin in live:
            self._note_lack(gateway, twin, now_ns)
        for gateway, token in overtaken:
            self._metrics.overtaken.inc()
            log.warning(
                "twin_overtaken",
                gateway=gateway,
                token=token,
                meaning=_OVERTAKEN,
            )

    def _tell_refusal(self, gateway: str, twin: Twin, now_ns: int) -> None:
        """Tell, once, that a twin does not count on a device, or that none of ours can: its token is too high."""
        beyond = twin.fencing_token > of_report_ms(now_ns)
        code = "token-beyond-belief" if beyond else twin.refused
        if self._refused.get(gateway, "") == code:
            return
        if not code:
            del self._refused[gateway]
            log.info("twin_accepted_again", gateway=gateway, fencing_token=twin.fencing_token)
            return
        if len(self._refused) >= _TROUBLED_REMEMBERED:
            self._refused.clear()
        self._refused[gateway] = code
        self._metrics.refused.inc()
        meaning = _BEYOND if beyond else "a desired twin that reached the device does not count there"
        log.warning("twin_refused", gateway=gateway, code=code, fencing_token=twin.fencing_token, meaning=meaning)

    def _note_lack(self, gateway: str, twin: Twin, now_ns: int) -> None:
        """Note whether a device has the twin that it was told here, or something else lies in its place.

        A lower token alone may be a report that was on its way while the twin was: that shows within the pause.
        """
        token, told_ns = self._told.get(gateway, (0, 0))
        if not token or twin.fencing_token > of_report_ms(now_ns):
            return  # it is told, or issued anew, all the same; or it takes none of ours
        if twin.refused:
            self._again.lacks(gateway, self._monotonic_ns())
        elif twin.fencing_token < token:
            self._again.lacks(gateway, told_ns + PAUSE_NS)
        else:
            self._again.has(gateway, self._monotonic_ns())

    def _report_of(self, message: Incoming) -> tuple[str, Twin] | None:
        try:
            address = address_of(message.topic, self._root)
            if (address.channel, address.name) != ("twin", "reported") or not message.payload:
                return None  # an empty one clears what was retained
            if len(message.payload) > _MAX_REPORT_BYTES:
                raise MalformedMessageError(f"{len(message.payload)} bytes are too long for a twin")
            twin = decode(message.payload, Twin)
            if not 0 <= twin.fencing_token < 2**63:
                raise MalformedMessageError("a fencing token beyond 63 bits")
        except (MalformedMessageError, MalformedTopicError) as error:
            self._metrics.bad_reports.inc()
            self._tell_once(str(message.topic)[:200], str(error))
            return None
        return address.gateway, twin

    def _tell_once(self, topic: str, error: str) -> None:
        if topic not in self._bad:
            if len(self._bad) >= _TROUBLED_REMEMBERED:
                self._bad.clear()
            self._bad.add(topic)
            log.warning("twin_report_unusable", topic=topic, error=error)

    def _publish(self) -> None:
        """Tell the twins that are due and not told on this connection yet, the earliest due first."""
        connected, connection = self._messages.connected, self._messages.connection
        if connection != self._connection:  # also one that was lost and made anew between two turns
            self._told.clear()
        self._connection = connection
        now_ns = self._monotonic_ns()
        self._allowance = min(self._pace, self._allowance + self._pace * (now_ns - self._counted_ns) / 1e9)
        self._counted_ns = now_ns
        if not connected:
            self._look_ns = now_ns
            return
        if now_ns < self._look_ns:
            return
        with self._database.transaction(durable=False) as tx:
            due = due_tokens(tx, self._wall_ns())
            waiting = [
                name
                for name, token in due.items()
                if self._told.get(name, (0, 0))[0] != token or self._again.is_due(name, now_ns)
            ]
            self._look_ns = now_ns + (0 if waiting else _LOOK_NS)
            twins = [one_desired(tx, name) for name in waiting[: max(0, int(self._allowance))]]
        for twin in twins:
            if twin is None:
                continue
            topic = topic_for(Address(twin.gateway, "twin", "desired"), self._root)
            if not self._messages.publish(topic, encode(twin.message)):
                return
            self._told[twin.gateway] = (twin.token, now_ns)
            if self._again.told(twin.gateway, now_ns):
                self._metrics.again.inc()
                log.info("twin_told_again", gateway=twin.gateway, fencing_token=twin.token)
            self._allowance -= 1
            self._metrics.published.inc()
