"""Parts of files over the broker: `ota/request` and `ota/reply`, between a thread that waits and the event loop.

What is asked and what the answers mean is none of the uplink's business; it carries them.
"""

import asyncio
from collections.abc import Callable

from gateway.uplink.exchange import Incoming, Outgoing
from gateway.uplink.link import MqttClient
from gateway.wire.topics import Address, filter_for, topic_for


class PartExchange:
    """The two topics of one gateway. `begin` and `end` belong to the event loop, the rest to any thread."""

    def __init__(self, client: MqttClient, gateway_id: str, root: str) -> None:
        """Nothing is subscribed to before somebody listens."""
        self._client = client
        self._request = topic_for(Address(gateway_id, "ota", "request"), root)
        self._reply = filter_for("ota", gateway=gateway_id, name="reply", root=root)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._take: Callable[[bytes], None] | None = None

    # ---- the event loop ------------------------------------------------------------------------------

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """The link is run by this loop from now on."""
        self._loop = loop
        self._subscribe()

    def end(self) -> None:
        """It is not run any more."""
        self._loop = None

    # ---- any thread ----------------------------------------------------------------------------------

    def listen(self, take: Callable[[bytes], None]) -> None:
        """Have replies handed over from now on: on the event loop, so `take` must not block or raise."""
        self._take = take
        self._on_loop(self._subscribe)

    def send(self, payload: bytes) -> bool:
        """Publish a request; False: there is no connection. Whether it arrives, only a reply tells."""
        return self._client.terms is not None and self._on_loop(self._publish, payload)

    # ---- inside --------------------------------------------------------------------------------------

    def _on_loop(self, act: Callable[..., None], *arguments: bytes) -> bool:
        loop = self._loop
        if loop is None:
            return False
        try:
            loop.call_soon_threadsafe(act, *arguments)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _subscribe(self) -> None:
        if self._take is not None:
            self._client.subscribe(self._reply, self._arrived)

    def _publish(self, payload: bytes) -> None:
        sent = self._client.publish(Outgoing(self._request, payload))
        sent.add_done_callback(lambda done: None if done.cancelled() else done.exception())  # a lost one is asked again

    def _arrived(self, message: Incoming) -> None:
        if self._take is not None and not message.retained:  # nobody retains a reply on purpose
            self._take(message.payload)
