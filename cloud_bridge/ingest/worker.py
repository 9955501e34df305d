"""Takes messages from a consumer, writes them in one transaction, and only then acknowledges them.

While nothing comes, a message is committed the moment it is there; under load, what has come during one commit makes
the next batch. Nothing waits on purpose.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from cloud_bridge.config import Ingest
from cloud_bridge.errors import StoreError, StoreRefusedError
from cloud_bridge.ingest.decoding import intakes_of, refused, sender_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.ingest.marks import PublishedMarks
from cloud_bridge.metrics import Metrics
from cloud_bridge.values import DeadLetter, Intake, Outcome, StreamKey
from gateway.wire.batch import payload_digest
from gateway.wire.messages import NO_EPOCH, Ack, encode
from gateway.wire.times import rfc3339
from gateway.wire.topics import Address, topic_for

log = structlog.get_logger()

_IDLE_SECONDS: Final = 1.0
_FIRST_DELAY_SECONDS: Final = 0.1
_MAX_DELAY_SECONDS: Final = 5.0
_SORTS_REMEMBERED: Final = 1000


class Messages(Protocol):
    """Where messages come from, and where acknowledgements go."""

    def check(self) -> None: ...
    def gather(self, messages: int, size_bytes: int, timeout_seconds: float) -> list[Incoming]: ...
    def acknowledge(self, messages: Sequence[Incoming]) -> int: ...
    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> bool: ...


class Sink(Protocol):
    """The part of a store that a worker needs."""

    def ingest(self, intake: Intake) -> Outcome: ...


class Worker:
    """One thread of ingest. `run` blocks; `stop` may be called from any thread."""

    def __init__(
        self,
        source: Messages,
        store: Sink,
        settings: Ingest,
        metrics: Metrics,
        marks: PublishedMarks,
        *,
        look: Callable[[], None] | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Prepare. look: called at each turn of the loop; it must not wait."""
        self._source = source
        self._look = look
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._marks = marks
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._stopping = threading.Event()
        self._failing = False
        self._proven = False  # something was committed since the start
        self._told: set[tuple[str, str]] = set()
        self._met: set[tuple[str, str]] = set()  # retained messages
        self.progress_ns = monotonic_ns()
        """Monotonic time of the last turn of the loop, for the watchdog."""

    def stop(self) -> None:
        """Ask `run` to return once the batch in hand is committed and acknowledged."""
        self._stopping.set()

    def run(self) -> None:
        """Work until stopped.

        Raises:
            BrokerError: the link has died; make a new one.
        """
        while not self._stopping.is_set():
            self.progress_ns = self._monotonic_ns()
            self._source.check()
            if self._look is not None:
                self._look()
            # One alone until one is through: what has killed the bridge before, if anything did, comes again now, and
            # each start must leave less of it.
            most = self._settings.batch_messages if self._proven else 1
            messages = self._source.gather(most, self._settings.batch_bytes, _IDLE_SECONDS)
            if messages:
                self._proven = self._process(messages)

    def _process(self, messages: Sequence[Incoming]) -> bool:
        """Commit and acknowledge, part by part. False if stopped meanwhile."""
        parts = intakes_of(
            messages,
            root=self._settings.root,
            received_at_ns=self._wall_ns(),
            most_bytes=self._settings.batch_bytes,
        )
        return all(self._settle(part, intake) for part, intake in parts)

    def _settle(self, messages: Sequence[Incoming], intake: Intake) -> bool:
        """Commit and acknowledge; when the store refuses, find out which message it is. False if stopped meanwhile."""
        started_ns = self.progress_ns = self._monotonic_ns()
        try:
            outcome = self._commit(intake)
        except StoreRefusedError as error:
            if len(messages) > 1:
                return all(self._process([message]) for message in messages)
            letter = refused(messages[0], "refused-by-store", str(error), sender_of(messages[0], self._settings.root))
            intake = Intake(intake.received_at_ns, dead_letters=(letter,))
            outcome = self._commit(intake)
        if outcome is not None:  # else stopping, and the store is away: it is sent again
            self._acknowledge(messages, outcome)
            self._take_custody(intake.dead_letters)
            self._count(messages, intake, outcome, started_ns)
        return outcome is not None

    def _commit(self, intake: Intake) -> Outcome | None:
        """Write, and try again for as long as the store is away. None if stopped meanwhile."""
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                outcome = self._store.ingest(intake)
            except StoreError as error:
                self._metrics.store_failures.inc()
                self._metrics.store_available.set(0)
                if not self._failing:
                    log.error("store_failing", error=str(error), consequence="nothing is acknowledged until it works")
                    self._failing = True
                self.progress_ns = self._monotonic_ns()
                if self._stopping.wait(delay * random.uniform(0.75, 1.25)):
                    return None
                delay = min(delay * 2, _MAX_DELAY_SECONDS)
                continue
            if self._failing:
                log.info("store_works_again")
                self._failing = False
            self._metrics.store_available.set(1)
            return outcome

    def _acknowledge(self, messages: Sequence[Incoming], outcome: Outcome) -> None:
        """Tell the broker, then the devices; both only after the commit."""
        sent = self._source.acknowledge(messages)
        self._metrics.acknowledged.inc(sent)
        self._metrics.stale.inc(len(messages) - sent)
        at = rfc3339(self._wall_ns())
        self._marks.note_conflicts(letter.key for letter in outcome.conflicts)
        for key, mark in outcome.marks.items():
            if not self._marks.admit(key, mark):
                continue
            ack = Ack(
                epoch=key.epoch,
                mark=mark,
                at=at,
                digest=outcome.digests.get(key, ""),
                conflicts=self._marks.conflicts(key),
            )
            if self._source.publish(self._topic(key), encode(ack)):
                self._metrics.marks.inc()

    def _take_custody(self, letters: Sequence[DeadLetter]) -> None:
        """Tell senders which of their payloads were committed as dead letters, whole: they need not send them again.

        Not retained: what a device has missed it learns when it sends the same again, and the marks stay where they
        are retained.
        """
        held: dict[tuple[str, str], list[str]] = {}
        for letter in letters:
            if letter.sender is not None and letter.is_custody:
                held.setdefault(letter.sender, []).append(payload_digest(letter.payload))
        at = rfc3339(self._wall_ns())
        for (gateway, record_class), digests in held.items():
            topic = topic_for(Address(gateway, "ack", record_class), self._settings.root)
            ack = Ack(epoch=NO_EPOCH, mark=0, at=at, kept=list(dict.fromkeys(digests)))
            self._source.publish(topic, encode(ack), retain=False)

    def _topic(self, key: StreamKey) -> str:
        return topic_for(Address(key.gateway, "ack", key.record_class), self._settings.root)

    def _count(self, messages: Sequence[Incoming], intake: Intake, outcome: Outcome, started_ns: int) -> None:
        metrics, now_ns = self._metrics, self._monotonic_ns()
        metrics.messages.inc(len(messages))
        metrics.batch_messages.observe(len(messages))
        metrics.batch_seconds.observe((now_ns - started_ns) / 1e9)
        for message in messages:
            metrics.ack_lag.observe((now_ns - message.received_ns) / 1e9)
        metrics.records.inc(outcome.inserted)
        metrics.duplicates.inc(outcome.duplicates)
        metrics.gap_numbers.inc(outcome.gap_rows)
        for letter in (*intake.dead_letters, *outcome.conflicts):
            if letter.retained and not self._is_new(letter):
                continue
            metrics.dead_letters.labels(letter.reason).inc()
            self._tell(letter)

    def _is_new(self, letter: DeadLetter) -> bool:
        """Tell whether a retained message is met for the first time; brokers hand it over at each connection."""
        known = (letter.topic, payload_digest(letter.payload))
        if known in self._met:
            return False
        if len(self._met) >= _SORTS_REMEMBERED:
            self._met.clear()
        self._met.add(known)
        return True

    def _tell(self, letter: DeadLetter) -> None:
        """Log the first of each sort: a device sends what is not acknowledged again and again."""
        sort = (letter.reason, letter.topic)
        if sort not in self._told:
            if len(self._told) >= _SORTS_REMEMBERED:
                self._told.clear()
            self._told.add(sort)
            log.warning("dead_letter", reason=letter.reason, topic=letter.topic[:200], detail=letter.detail)
