"""The systems under test: how each is configured, started, and asked what has arrived."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, ClassVar, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hil.loopback.children import Child
from tests.bench.peers.arena import Arena, Kept
from tests.bench.peers.readings import Arrivals

_SESSION_SECONDS = 3600


class System(ABC):
    """One system in one arena. Entering it starts its side of the cloud and its gateway."""

    name: ClassVar[str]
    title: ClassVar[str]
    is_local_broker: ClassVar[bool] = False

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.arrivals = Arrivals()
        self._stack = ExitStack()

    @abstractmethod
    def gateway(self) -> Child:
        """Configure the process on the device."""

    @abstractmethod
    def cloud(self, stack: ExitStack) -> None:
        """Start what takes the readings at the far end and counts them in `arrivals`."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return what is measured."""

    def cloud_bytes(self) -> int | None:
        """Return what its own far end has in memory now; None if it has none of its own."""
        return None

    def stored_twice(self) -> int | None:
        """Return how many records its own far end has stored twice; None if it has none of its own."""
        return None

    def given_up(self) -> int | None:
        """Return how many of the lost readings it has given up on purpose, and named; None if it names none."""
        return None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.cloud(stack)
            self.kept = stack.enter_context(Kept(self.gateway()))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class Consumer:
    """Counts readings at the broker of the cloud. It has a session there, and takes whatever is queued for it.

    It stores nothing and is never killed: the kindest far end that a system without one of its own can be given.
    """

    def __init__(
        self,
        port: int,
        topics: list[str],
        on_message: Callable[[mqtt.Client, mqtt.MQTTMessage], None],
    ) -> None:
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id="far-end", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.reconnect_delay_set(1, 1)
        self._topics = topics
        self._client.on_connect = self._subscribe
        self._client.on_message = lambda client, _data, message: on_message(client, message)
        self._port = port

    def _subscribe(self, client: mqtt.Client, *_rest: Any) -> None:
        client.subscribe([(topic, 1) for topic in self._topics])

    def __enter__(self) -> Self:
        wishes = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # it has no annotations
        wishes.SessionExpiryInterval = _SESSION_SECONDS
        wishes.ReceiveMaximum = 1000
        self._client.connect("127.0.0.1", self._port, clean_start=False, properties=wishes)
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()
