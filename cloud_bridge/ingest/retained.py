"""Takes back what a broker still says for a store that is gone: marks above what this store has.

Marks are retained, so that a device learns what was committed while it was away. A store that was put back from an
older copy, or that took the place of one that was lost, has less than they say; a device that comes back would let go
of rows that it could have sent again. So each bridge that begins compares what the broker has with what it has itself.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from cloud_bridge.errors import StoreError
from cloud_bridge.ingest.marks import PublishedMarks
from cloud_bridge.values import Stream, StreamKey
from gateway.wire.errors import MalformedMessageError, MalformedTopicError
from gateway.wire.messages import NO_EPOCH, Ack, decode, encode
from gateway.wire.times import rfc3339
from gateway.wire.topics import address_of

log = structlog.get_logger()


class Broker(Protocol):
    """What `cloud_bridge.ingest.consumer.Consumer` is here."""

    def retained_marks(self) -> Sequence[tuple[str, bytes]]:
        """Return topics and payloads of marks that the broker had retained, once, when all of them are there."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> bool: ...


class Streams(Protocol):
    """The part of a store that is asked."""

    def streams(self) -> list[Stream]: ...


class RetainedMarks:
    """Belongs to the thread of a worker, which calls `turn` again and again."""

    def __init__(
        self,
        broker: Broker,
        store: Streams,
        published: PublishedMarks,
        *,
        root: str,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._broker = broker
        self._store = store
        self._published = published
        self._root = root
        self._wall_ns = wall_ns
        self._waiting: dict[str, tuple[StreamKey, int]] = {}
        self._failing = False

    def turn(self) -> None:
        """Compare what was heard since the last time; what cannot be compared or told now waits for the next."""
        for topic, payload in self._broker.retained_marks():
            found = self._mark_of(topic, payload)
            if found is not None:
                self._waiting[topic] = found
        if not self._waiting:
            return
        try:
            # Read after they came: a mark is told only after its commit, so none is above what is read here.
            own = {stream.key: stream.mark for stream in self._store.streams()}
        except StoreError as error:
            if not self._failing:
                log.error("retained_marks_wait_for_store", error=str(error))
            self._failing = True
            return
        if self._failing:
            log.info("retained_marks_go_on")
        self._failing = False
        self._correct(own)

    def _correct(self, own: dict[StreamKey, int]) -> None:
        stale = {topic: key for topic, (key, mark) in self._waiting.items() if mark > own.get(key, 0)}
        told = []
        for topic, key in stale.items():
            mark = own.get(key, 0)
            if self._published.admit(key, mark):  # else a newer one was told meanwhile
                ack = Ack(epoch=key.epoch, mark=mark, at=rfc3339(self._wall_ns()))
                if not self._broker.publish(topic, encode(ack)):
                    break
            told.append(topic)
        if told:
            log.warning(
                "marks_taken_back",
                streams=len(told),
                first=told[0],
                meaning="an earlier store had confirmed more than this one has: it was put back from an older copy, or"
                " is another one; devices send again what they still have",
            )
        self._waiting = {topic: self._waiting[topic] for topic in stale if topic not in set(told)}

    def _mark_of(self, topic: str, payload: bytes) -> tuple[StreamKey, int] | None:
        try:
            address = address_of(topic, self._root)
            ack = decode(payload, Ack)
        except (MalformedTopicError, MalformedMessageError):
            return None  # no device believes it either
        if ack.epoch == NO_EPOCH:
            return None
        return StreamKey(address.gateway, ack.epoch, address.name), ack.mark
