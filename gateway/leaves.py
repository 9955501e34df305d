"""Leaf sensors: sources that listen on the local broker."""

import threading
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from gateway.sources.base import OnMessage
from gateway.values import Done

log = structlog.get_logger()

MAX_WAITING: Final = 10_000
"""Messages that wait for a source to open. A broker that goes on with a session sends its whole queue at once."""


class Hold(Protocol):
    """Has a message stay unacknowledged until what it returns is called."""

    def __call__(self, taker: str, /) -> Done: ...


OnArrival = Callable[[str, bytes, Hold], None]
"""Told topic and payload on the event loop. Whoever does not hold the message is done with it when this returns."""


class Leaves:
    """Lets the sources of pipelines listen on the local broker."""

    def __init__(self, subscribe: Callable[[str, str, OnArrival], None]) -> None:
        """`subscribe(filter, taker, callback)` is the announcer's; what it is given stays for ever."""
        self._subscribe = subscribe

    def place(self, taker: str, topic_filter: str) -> "Place":
        """Keep a place for a pipeline; from now on what comes for it waits there until its source opens."""
        place = Place(taker, topic_filter)
        self._subscribe(topic_filter, taker, place.arrived)
        return place


class Place:
    """What one pipeline hears of one topic, through all openings of its source. Safe to use from any thread.

    A message stays in hand until it is done. What a source did not look at before it closed waits for the next, in
    order; so does, with `renew`, everything that an earlier run of the pipeline had in hand.
    """

    def __init__(self, taker: str, topic_filter: str) -> None:
        self._taker = taker
        self._topic_filter = topic_filter
        self._lock = threading.RLock()  # a listener may say `done` at once
        self._listener: OnMessage | None = None
        self._in_hand: dict[int, _Message] = {}
        self._waiting: dict[int, _Message] = {}
        self._number = 0
        self._overflowing = False

    def subscribe(self, topic_filter: str, on_message: OnMessage) -> Callable[[], None]:
        """Have `on_message` called in place of the listener before; what has waited comes first. Returns what ends it.

        Raises:
            ValueError: the place was kept for another topic.
        """
        if topic_filter != self._topic_filter:
            raise ValueError(f"the place of {self._taker} is for {self._topic_filter}, not for {topic_filter}")
        with self._lock:
            self._listener = on_message
            waiting, self._waiting = self._waiting, {}
            if self._overflowing:
                self._overflowing = False
                log.info("leaf_messages_taken_again", pipeline=self._taker)
            for _, message in sorted(waiting.items()):
                on_message(message.topic, message.payload, message)

        def end() -> None:
            with self._lock:  # with it, nothing is told to a listener any more once this has returned
                if self._listener is on_message:
                    self._listener = None

        return end

    def renew(self) -> None:
        """A run of the pipeline begins: what the one before had in hand waits for its source."""
        with self._lock:
            self._waiting = dict(self._in_hand)

    def arrived(self, topic: str, payload: bytes, hold: Hold) -> None:
        """Take a message of the broker."""
        with self._lock:
            if self._listener is None and len(self._waiting) >= MAX_WAITING:
                if not self._overflowing:
                    self._overflowing = True
                    log.warning("leaf_messages_dropped", pipeline=self._taker, topic=topic, waiting=MAX_WAITING)
                return
            self._number += 1
            message = _Message(self, self._number, topic, payload, hold(self._taker))
            self._in_hand[self._number] = message
            if self._listener is None:
                self._waiting[self._number] = message
            else:
                self._listener(topic, payload, message)

    def done(self, number: int) -> None:
        """A message was dealt with."""
        with self._lock:
            message = self._in_hand.pop(number, None)
            self._waiting.pop(number, None)
        if message is not None:
            message.acknowledge()

    def again(self, number: int) -> None:
        """A message was not looked at."""
        with self._lock:
            if number in self._in_hand:
                self._waiting[number] = self._in_hand[number]


class _Message:
    """One message in the hands of a pipeline; a `Held`."""

    __slots__ = ("_number", "_place", "acknowledge", "payload", "topic")

    def __init__(self, place: Place, number: int, topic: str, payload: bytes, acknowledge: Done) -> None:
        self._place = place
        self._number = number
        self.topic = topic
        self.payload = payload
        self.acknowledge = acknowledge

    def done(self) -> None:
        self._place.done(self._number)

    def again(self) -> None:
        self._place.again(self._number)
