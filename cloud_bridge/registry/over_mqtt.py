"""Answers devices that reach nothing but the broker: a part of a file of the repository for each `ota/request`.

What a device asks for is bounded: so many requests wait, so many bytes are on their way to the broker, and so many of
one device are answered at a time. What is dropped, the device asks for again.
"""

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
import prometheus_client
import structlog
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Ingest
from cloud_bridge.errors import BridgeError
from cloud_bridge.ingest.consumer import Consumer, Link
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.metrics import Metrics
from cloud_bridge.registry.errors import NotFoundError
from cloud_bridge.threads import run_in_thread
from gateway.wire.errors import MalformedMessageError, MalformedTopicError
from gateway.wire.messages import FetchReply, FetchRequest, decode
from gateway.wire.parts import pack_part
from gateway.wire.topics import Address, address_of, filter_for, shared_filter, topic_for

log = structlog.get_logger()

MAX_PART_BYTES: Final = 512 * 1024
MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024
MAX_WAITING: Final = 256
"""Requests that wait here; the broker keeps the others, as long as it does."""
MAX_OF_ONE_DEVICE: Final = 8
"""Requests of one device in a round; it has fewer on their way when it is as it should be."""
STALE_SECONDS: Final = 10.0
"""A request that waited for so long has been given up by its device, which asks again."""

_GATHER_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.02
_SIZES: Final = 256
_PATH: Final = re.compile(r"(metadata|targets)(/[A-Za-z0-9_%][A-Za-z0-9_.%+@-]{0,254}){1,8}")


class Files(Protocol):
    """What is needed of the registry. Both methods block, and raise `NotFoundError`, or a `BridgeError` for now."""

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return a part of a file, shorter at its end."""
        ...

    def size(self, path: str) -> int:
        """Return how many bytes a file has."""
        ...


class PartConsumer(Consumer):
    """Takes `ota/request` from one broker. What waited there while the bridge was away is not wanted any more."""

    def __init__(self, link: Link, settings: Ingest, metrics: Metrics) -> None:
        """Prepare, with a queue and a session of its own."""
        own = msgspec.structs.replace(settings, receive_maximum=MAX_WAITING, session_expiry_seconds=0)
        super().__init__(link, own, metrics)
        self._shared = settings.group if settings.subscription == "shared" else None
        self._root = settings.root

    def filters(self) -> list[str]:
        """Return what is subscribed to; of several bridges one answers."""
        requests = filter_for("ota", name="request", root=self._root)
        return [requests if self._shared is None else shared_filter(f"{self._shared}-ota", requests)]


class PartMetrics:
    """What was answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the counters."""
        self.answers = prometheus_client.Counter(
            "sluice_bridge_ota_parts", "Requests for parts of files, by outcome", ["outcome"], registry=registry
        )
        self.sent_bytes = prometheus_client.Counter(
            "sluice_bridge_ota_part_bytes", "Bytes of files sent over MQTT", registry=registry
        )


class Answerer:
    """Answers requests in rounds. `answer` is all that matters; the rest is bookkeeping of what is on its way."""

    def __init__(self, files: Files, root: str, metrics: PartMetrics, monotonic_ns: Callable[[], int]) -> None:
        self._files = files
        self._root = root
        self._metrics = metrics
        self._monotonic_ns = monotonic_ns
        self._sizes: dict[str, int] = {}
        self._failing = False

    def replies(self, messages: Iterable[Incoming]) -> Iterable[tuple[str, bytes]]:
        """Return topic and payload of the answer to each request that deserves one, made when it is asked for."""
        of_device: Counter[str] = Counter()
        now = self._monotonic_ns()
        for message in messages:
            if now - message.received_ns > STALE_SECONDS * 1e9:
                self._metrics.answers.labels("stale").inc()
                continue
            try:
                address = address_of(message.topic, self._root)
                request = decode(message.payload, FetchRequest)
            except (MalformedTopicError, MalformedMessageError):
                self._metrics.answers.labels("malformed").inc()
                continue
            of_device[address.gateway] += 1
            if of_device[address.gateway] > MAX_OF_ONE_DEVICE:
                self._metrics.answers.labels("too-many").inc()
                continue
            yield topic_for(Address(address.gateway, "ota", "reply"), self._root), self.answer(request)

    def answer(self, request: FetchRequest) -> bytes:
        """Return the payload of the reply to a request."""
        reply = FetchReply(request_id=request.request_id[:64], path=request.path, offset=request.offset)
        if request.length > MAX_PART_BYTES:
            return self._refusal(reply, "too-large")
        if _PATH.fullmatch(request.path) is None:
            return self._refusal(reply, "not-found")
        try:
            total = self._size(request.path)
            left = max(0, total - request.offset)
            content = self._files.read(request.path, request.offset, min(request.length, left)) if left else b""
        except NotFoundError:
            return self._refusal(reply, "not-found")
        except BridgeError as error:
            if not self._failing:
                log.error("ota_files_unreadable", path=request.path, reason=str(error))
            self._failing = True
            return self._refusal(reply, "unavailable")
        if self._failing:
            log.info("ota_files_readable_again")
            self._failing = False
        self._metrics.answers.labels("sent").inc()
        self._metrics.sent_bytes.inc(len(content))
        return pack_part(msgspec.structs.replace(reply, length=len(content), total=total), content)

    def _refusal(self, reply: FetchReply, error: str) -> bytes:
        self._metrics.answers.labels(error).inc()
        return pack_part(msgspec.structs.replace(reply, error=error))

    def _size(self, path: str) -> int:
        known = self._sizes.get(path)
        if known is not None:
            return known
        size = self._files.size(path)
        if path.startswith("targets/"):  # its name has its digest in it, so it never changes
            self._sizes[path] = size
            if len(self._sizes) > _SIZES:
                del self._sizes[next(iter(self._sizes))]
        return size


class PartServer:
    """The component of one broker: made anew after a failure, like every other."""

    def __init__(
        self,
        link: Link,
        settings: Ingest,
        files: Files,
        metrics: Metrics,
        parts: PartMetrics,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare; nothing is connected before `run`. `link.client_id` must be one that nobody else uses."""
        self._link = link
        self._settings = settings
        self._metrics = metrics
        self._pause = pause
        self._answerer = Answerer(files, settings.root, parts, monotonic_ns)
        self._stopping = False

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping = True

    async def run(self) -> None:
        """Answer until stopped."""
        if self._stopping:
            return
        consumer = PartConsumer(self._link, self._settings, self._metrics)

        def work() -> None:
            try:
                consumer.start()
                self._answer_all(consumer)
            finally:
                consumer.stop()

        await run_in_thread(self._link.client_id, work, self.stop)

    def _answer_all(self, consumer: PartConsumer) -> None:
        unsent: deque[tuple[int, Callable[[], bool]]] = deque()
        while not self._stopping:
            consumer.check()
            messages = consumer.gather(MAX_WAITING, MAX_UNSENT_BYTES, _GATHER_SECONDS)
            for topic, payload in self._answerer.replies(messages):
                self._make_room(consumer, unsent, len(payload))
                is_sent = consumer.hand_over(topic, payload)
                if is_sent is None:
                    break
                unsent.append((len(payload), is_sent))
            consumer.acknowledge(messages)

    def _make_room(self, consumer: PartConsumer, unsent: deque[tuple[int, Callable[[], bool]]], size: int) -> None:
        """Wait until the broker has taken enough: the library would queue without end."""
        while unsent and not self._stopping:
            while unsent and unsent[0][1]():
                unsent.popleft()
            if sum(each for each, _ in unsent) + size <= MAX_UNSENT_BYTES:
                return
            if not consumer.connected:
                unsent.clear()  # what waits there goes with the next connection, or is asked for again
                return
            self._pause(_POLL_SECONDS)
