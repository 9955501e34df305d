"""`availability/gateway`: whether this gateway is there."""

from collections.abc import Callable
from typing import Literal

from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import Availability, decode, encode
from gateway.wire.times import rfc3339
from gateway.wire.topics import Address, topic_for

AVAILABILITY_NAME = "gateway"


class GatewayPresence:
    """The three retained messages of one gateway."""

    def __init__(self, gateway_id: str, root: str, version: str, clock_ns: Callable[[], int]) -> None:
        self._topic = topic_for(Address(gateway_id, "availability", AVAILABILITY_NAME), root)
        self._version = version
        self._clock_ns = clock_ns

    @property
    def topic(self) -> str:
        """Where they are published."""
        return self._topic

    def online(self) -> bytes:
        """Say that the gateway is there."""
        return self._message("online")

    def stopped(self) -> bytes:
        """Say that it ended on purpose."""
        return self._message("stopped")

    def offline(self) -> bytes:
        """Say that it was lost; the time is when the connection was made, for the broker sends this."""
        return self._message("offline")

    def is_denied_by(self, payload: bytes) -> bool:
        """Tell whether a message on the topic says that the gateway is gone.

        The gateway may have two connections to one broker, or to brokers that are bridged. The will of the one that
        is lost, or its farewell, must not be the last word while the other is there.
        """
        try:
            return decode(payload, Availability).state != "online"
        except MalformedMessageError:
            return True

    def _message(self, state: Literal["online", "stopped", "offline"]) -> bytes:
        return encode(Availability(state=state, at=rfc3339(self._clock_ns()), version=self._version))
