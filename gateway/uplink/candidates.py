"""The brokers of a list: how each has behaved, and when it may be tried again."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from gateway.config import Broker
from gateway.errors import ConfigError
from gateway.uplink.backoff import Backoff, Lane
from gateway.uplink.endpoint import (
    Access,
    CredentialsAwaitedError,
    Endpoint,
    endpoint_of,
    password_of,
    tls_context_of,
)
from gateway.uplink.exchange import Ending

log = structlog.get_logger()

STABLE_SECONDS: Final = 10.0
"""A connection that lasts so long is a success; one that ends sooner counts as one more failure in a row."""
SUSPICIOUS_LIVES: Final = 3
MAX_PASSED_OVER_DOUBLINGS: Final = 4
_ANSWER_SECONDS: Final = 5.0
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
"""A reason may say what time it is here; that it is later now makes it no other reason."""


@dataclass(slots=True)
class Candidate:
    """A broker of the list, and how it has behaved. Times are monotonic seconds."""

    broker: Broker
    endpoint: Endpoint
    failures: int = 0
    short_lives: int = 0  # connections in a row that were made and soon lost
    lane: Lane = "unreachable"
    distrusted: bool = False
    not_before: float = 0.0
    passed_over: int = 0  # times in a row that it was left because no bridge answered there
    no_return_before: float = 0.0  # while another one will do
    awaiting: bool = False  # there is no certificate to show to it
    told: tuple[Lane, str] | None = None  # why it is away, as it was logged last; None: it was connected since

    def lived(self, seconds: float) -> None:
        """Count a connection to it that is over."""
        self.short_lives += 1
        if seconds >= STABLE_SECONDS:
            self.forgive()

    def heard(self) -> None:
        """Take note that a bridge answers there."""
        self.passed_over = 0
        self.no_return_before = 0.0

    def forgive(self) -> None:
        """Forget what went wrong with it."""
        self.failures = self.short_lives = 0


class Candidates:
    """All of them, in order of preference."""

    def __init__(
        self,
        brokers: Sequence[Broker],
        backoff: Backoff,
        *,
        monotonic: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        """Check the brokers; nothing is connected yet.

        Raises:
            ConfigError: there is none, or one cannot be used as configured.
        """
        if not brokers:
            raise ConfigError("no broker is configured")
        self._all = [Candidate(broker, _checked(broker)) for broker in brokers]
        self._backoff = backoff
        self._monotonic = monotonic
        self._draw = draw

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def first(self) -> Candidate:
        """The one that is preferred."""
        return self._all[0]

    def to_try(self, ready: Sequence[Candidate], now: float) -> Candidate | None:
        """Return which of these is tried now: the first of the list, those without a bridge behind all others."""
        due = [candidate for candidate in ready if candidate.not_before <= now]
        return min(due, key=lambda each: max(each.no_return_before - now, 0.0), default=None)

    async def another(self, present: Candidate, access: Access) -> bool:
        """Tell whether there is another one that takes connections."""
        for candidate in self._all:
            if candidate is not present and candidate.lane != "refused" and await _answers(candidate, access):
                candidate.not_before = 0.0
                return True
        return False

    def pass_over(self, candidate: Candidate, fail_back_seconds: float) -> None:
        """Put one behind the others for a while, longer each time: no bridge answers there."""
        pause = fail_back_seconds * 2.0 ** min(candidate.passed_over, MAX_PASSED_OVER_DOUBLINGS)
        candidate.passed_over += 1
        candidate.no_return_before = self._monotonic() + pause

    def certificate_came(self) -> None:
        """Let those be tried at once that are shown a certificate: there is a new one."""
        for candidate in self._all:
            if candidate.broker.identity:
                candidate.not_before = 0.0

    async def back_above(self, present: Candidate, access: Access) -> Candidate | None:
        """Return one further up the list that takes connections again, to be tried at once; None: there is none."""
        now = self._monotonic()
        for better in self._all[: self._all.index(present)]:
            if better.no_return_before > now:
                continue
            # One that refused us is there all the time: leaving for it would only interrupt what works. Whether a
            # certificate is believed by now, though, the try itself tells.
            if (better.lane != "refused" or better.distrusted) and await _answers(better, access):
                better.not_before = 0.0
                return better
        return None

    def settle(self, candidate: Candidate, ending: Ending, client_id: str) -> Ending:
        """Decide when a broker may be tried again, and log why it is away; return the ending with that in full words.

        `client_id` is what it was told last.
        """
        candidate.failures += 1
        candidate.lane = ending.lane
        candidate.distrusted = ending.distrust
        delay = self._backoff.delay(ending.lane, candidate.failures, self._draw())
        candidate.not_before = self._monotonic() + delay
        if ending.code is None and candidate.short_lives >= SUSPICIOUS_LIVES:
            # What a broker does that gives no reason, as mosquitto 2.0 when a session is taken over.
            hint = f"{ending.reason}, again and again; does another client use the id {client_id!r}?"
            ending = replace(ending, reason=hint)
        sort = ending.lane, _TIME.sub("", ending.reason)
        if candidate.told != sort:
            candidate.told = sort
            log.warning("mqtt_not_connected", broker=str(candidate.endpoint), lane=ending.lane, reason=ending.reason)
        return ending


def _checked(broker: Broker) -> Endpoint:
    """Find what a person must change before anything is started."""
    endpoint = endpoint_of(broker)
    password_of(broker)
    if endpoint.tls and not broker.identity:
        tls_context_of(broker)
    return endpoint


async def _answers(candidate: Candidate, access: Access) -> bool:
    """Tell whether a broker takes connections at all, so that a working one is not left for nothing."""
    try:
        context = access.context(candidate.broker) if candidate.endpoint.tls else None
        async with asyncio.timeout(_ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(candidate.endpoint.host, candidate.endpoint.port, ssl=context)
    except (OSError, ConfigError, CredentialsAwaitedError):  # TimeoutError and SSLError are OSErrors
        return False
    writer.close()
    return True
