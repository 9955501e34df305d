"""What a client has subscribed to, and who gets the messages. All of it belongs to the event loop."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from gateway.uplink.exchange import Incoming
from gateway.uplink.filters import matches

log = structlog.get_logger()

MAX_STRAYS: Final = 100

Handler = Callable[[Incoming], None]


class Subscriptions:
    """Filters with their handlers."""

    def __init__(self, unsubscribe: Callable[[str], bool]) -> None:
        """`unsubscribe` takes a filter back from the broker; False: there is no connection now."""
        self._unsubscribe = unsubscribe
        self._handlers: dict[str, Handler] = {}
        self.strays: set[str] = set()
        """Topics that nobody here has asked for."""

    def add(self, topic_filter: str, handler: Handler) -> bool:
        """Have a handler called with every message of a filter; True when the broker has not been asked for it yet."""
        known = topic_filter in self._handlers
        self._handlers[topic_filter] = handler
        return not known

    @property
    def filters(self) -> list[str]:
        """What is asked for, in the order in which it was."""
        return list(self._handlers)

    def dispatch(self, message: Incoming) -> None:
        """Hand a message to those who asked for it; its receipt is done once they, and whom they let hold it, are."""
        loop = asyncio.get_running_loop()
        wanted = False
        for topic_filter, handler in list(self._handlers.items()):
            if matches(topic_filter, message.topic):
                # A handler that fails must not take the messages behind this one with it.
                loop.call_soon(handler, message)
                wanted = True
        if message.receipt is not None:
            loop.call_soon(message.receipt.done)
            if not wanted:
                self._unwanted(message.topic)

    def _unwanted(self, topic: str) -> None:
        """Take back a subscription of an earlier configuration, which the broker has kept with the session.

        Its filter is not known. If it has wildcards, the messages go on coming and are acknowledged and forgotten.
        """
        if topic in self.strays or len(self.strays) >= MAX_STRAYS:
            return
        if self._unsubscribe(topic):
            self.strays.add(topic)
            log.info("mqtt_subscription_taken_back", topic=topic)
