"""Leaf sensors that publish on the local broker."""

import time
from collections import deque
from collections.abc import Iterator
from queue import Empty, Queue

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.config import MqttSource
from gateway.errors import GatewayError, SourceLostError
from gateway.sources.base import ClosableSource, Subscribe, WallClock
from gateway.values import Held, SampleBlock

MAX_PAYLOAD_BYTES = 64 * 1024
QUEUE_MESSAGES = 1000
HELD_MESSAGES = 10_000
"""So many are taken of those that the broker keeps for us: what is refused is answered for, and gone.

Where a session goes on, mosquitto sends all that has queued up meanwhile at once, whatever Receive Maximum and its own
`max_inflight_messages` say.
"""

_Message = tuple[str, bytes, int, int, Held | None]  # topic, payload, UTC, monotonic
_DONE: _Message = ("", b"", 0, 0, None)


class UnusableMessageError(GatewayError):
    """A message that cannot be used; the text is the reason it is counted under."""


class MqttLeaf(ClosableSource):
    """Each message is one sample, stamped when it arrived: the leaf's clock is not trusted.

    Where the broker keeps messages until they were dealt with, each block carries its message on; what cannot be used
    is dealt with here, and what was not looked at when the source closes waits for the next one.
    """

    def __init__(
        self, name: str, settings: MqttSource, subscribe: Subscribe, *, wall_clock: WallClock = time.time_ns
    ) -> None:
        super().__init__(name)
        self._settings = settings
        self._subscribe = subscribe
        self._wall_clock = wall_clock
        self._channels = len(settings.fields) if settings.fields else settings.channels
        self._recent: deque[tuple[str, object]] = deque(maxlen=QUEUE_MESSAGES)  # topics and sequence numbers
        self._queue: Queue[_Message] = Queue()  # bounded in `_arrived`

    def close(self) -> None:
        """Make `captures` return at once."""
        super().close()
        self._wake()

    def captures(self) -> Iterator[SampleBlock]:
        """Yield a block (1, channels) for each message."""
        settings = self._settings
        unsubscribe = self._subscribe(settings.topic, self._arrived)
        try:
            good_at = time.monotonic()
            while not self._closing.is_set():
                left_seconds = good_at + settings.silent_after_seconds - time.monotonic()
                if left_seconds <= 0:
                    raise self._silent()
                try:
                    topic, payload, captured_at_ns, received_ns, held = self._queue.get(timeout=left_seconds)
                except Empty:
                    continue
                if self._closing.is_set():
                    _give_back(held)
                    return
                try:
                    sample = self.parsed(payload)
                except UnusableMessageError as error:
                    self._drops.count(str(error), detail=settings.topic)
                    _settle(held)
                    continue
                good_at = time.monotonic()
                if self._is_repeated(topic, payload):
                    self._drops.count("repeated", detail=topic)
                    _settle(held)
                    continue
                yield SampleBlock(self.name, captured_at_ns, received_ns, settings.rate_hz, sample, held)
        finally:
            unsubscribe()
            while not self._queue.empty():  # nobody else takes from it, and nothing is added any more
                _give_back(self._queue.get()[-1])

    def _silent(self) -> SourceLostError:
        topic = self._settings.topic
        return SourceLostError(
            f"source {self.name}: nothing usable on topic {topic} for {self._settings.silent_after_seconds:g} s "
            f"(dropped: {self.drops}); check the sensor and the topic with `mosquitto_sub -t '{topic}'`"
        )

    def _arrived(self, topic: str, payload: bytes, held: Held | None = None) -> None:
        """Take a message on the MQTT client's thread: only count or queue it."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            self._drops.count("too_large")
            _settle(held)
            return
        if self._queue.qsize() >= (QUEUE_MESSAGES if held is None else HELD_MESSAGES):
            self._drops.count("queue_full")
            _settle(held)
            return
        self._queue.put((topic, payload, self._wall_clock(), time.monotonic_ns(), held))

    def _wake(self) -> None:
        self._queue.put(_DONE)

    def _is_repeated(self, topic: str, payload: bytes) -> bool:
        """Tell whether a leaf has sent the same reading before, as it may where an answer of the broker got lost."""
        if self._settings.sequence_field is None:
            return False
        message = msgspec.json.decode(payload)
        try:
            key = topic, _field(message, self._settings.sequence_field) if isinstance(message, dict) else None
        except UnusableMessageError:
            return False
        if not isinstance(key[1], int | float | str):
            return False
        if key in self._recent:
            return True
        self._recent.append(key)
        return False

    def parsed(self, payload: bytes) -> NDArray[np.float32]:
        """Return a message as (1, channels); UnusableMessageError if it cannot be."""
        try:
            message = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UnusableMessageError("not_json") from error
        if self._settings.fields:
            if not isinstance(message, dict):
                raise UnusableMessageError("not_an_object")
            values = [_field(message, field) for field in self._settings.fields]
        else:
            values = message if isinstance(message, list) else [message]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            raise UnusableMessageError("not_a_number")
        if len(values) != self._channels:
            raise UnusableMessageError("wrong_channels")
        try:
            with np.errstate(over="ignore"):
                sample = np.array([values], np.float64).astype(np.float32)
        except OverflowError as error:  # JSON integers have no limit
            raise UnusableMessageError("not_finite") from error
        if not np.isfinite(sample).all():
            raise UnusableMessageError("not_finite")
        return sample


def _settle(held: Held | None) -> None:
    if held is not None:
        held.done()


def _give_back(held: Held | None) -> None:
    if held is not None:
        held.again()


def _field(message: dict[str, object], field: str) -> object:
    """Return a field; a dotted name goes down into objects, if there is no field of just that name."""
    if field in message:
        return message[field]
    value: object = message
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UnusableMessageError("missing_field")
        value = value[part]
    return value
