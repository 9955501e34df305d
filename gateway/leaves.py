"""Leaf sensors: sources that listen on the local broker."""

import threading
from collections.abc import Callable
from functools import partial

from gateway.sources.base import OnMessage


class Leaves:
    """Lets sensor sources listen on the local broker, each opening in place of the one before.

    A source that was silent is opened again and again: the broker is asked once, and no old listener stays behind.
    """

    def __init__(self, subscribe: Callable[[str, OnMessage], None]) -> None:
        """`subscribe` is the announcer's; what it is given stays for ever."""
        self._subscribe = subscribe
        self._lock = threading.Lock()
        self._listeners: dict[str, list[OnMessage]] = {}

    def subscribe(self, topic_filter: str, on_message: OnMessage) -> Callable[[], None]:
        """Have `on_message` called for a filter; returns what ends it."""
        with self._lock:
            is_new = topic_filter not in self._listeners
            self._listeners.setdefault(topic_filter, []).append(on_message)
        if is_new:
            self._subscribe(topic_filter, partial(self._hand_on, topic_filter))

        def end() -> None:
            with self._lock:
                self._listeners[topic_filter].remove(on_message)

        return end

    def _hand_on(self, topic_filter: str, topic: str, payload: bytes) -> None:
        with self._lock:
            listeners = tuple(self._listeners[topic_filter])
        for listener in listeners:
            listener(topic, payload)
