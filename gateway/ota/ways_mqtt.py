"""A repository behind the broker, for sites that reach nothing else: the bridge answers part by part.

Parts may be lost, come twice, late or in another order. What is lost is asked for again; nothing that comes is believed
before the digest of the whole is: who can write to the broker can do no more than make a download fail.
"""

import itertools
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.ota.errors import NotThereError, UnreachableError
from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import FetchReply, FetchRequest, encode
from gateway.wire.parts import unpack_part

IN_FLIGHT: Final = 4
PART_BYTES: Final = (16 * 1024, 256 * 1024)
"""Parts begin with the first size, small enough for the rate of a slow link, and double while they come quickly."""

QUICK_SECONDS: Final = 2.0
TRIES: Final = 4
"""So often in a row a part goes unanswered before the bridge counts as away."""


class Exchange(Protocol):
    """What is needed of `gateway.uplink.parts.PartExchange`."""

    def listen(self, take: Callable[[bytes], None]) -> None:
        """Have replies handed over, on another thread."""
        ...

    def send(self, payload: bytes) -> bool:
        """Send a request; False: there is no connection."""
        ...


@dataclass(slots=True)
class _Ask:
    """A part that is on its way."""

    offset: int
    length: int
    asked_ns: int = 0
    tries: int = 0


class MqttWay:
    """The bridge's repository over `ota/request` and `ota/reply`."""

    counted_elsewhere = True  # by the tap on the connection

    def __init__(
        self,
        exchange: Exchange,
        *,
        monotonic_ns: Callable[[], int],
        answer_seconds: float = 15.0,
    ) -> None:
        """Listen from now on."""
        self._exchange = exchange
        self._monotonic_ns = monotonic_ns
        self._answer_ns = int(answer_seconds * 1e9)
        self._lock = threading.Condition()
        self._prefix = secrets.token_hex(4)  # a reply to an earlier run of this program is none to this one
        self._numbers = itertools.count(1)
        self._path = ""
        self._asked: dict[str, tuple[int, int]] = {}  # by request, also those that were given up: they may still come
        self._inbox: list[tuple[FetchReply, bytes]] = []
        self._part = PART_BYTES[0]
        self.ignored = 0  # replies to nothing that was asked, or not as asked
        exchange.listen(self._take)

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """See `Way.read`."""
        end, ask_at = offset + limit, offset
        waiting: dict[int, _Ask] = {}  # by offset: on their way
        ready: dict[int, bytes] = {}  # by offset: here, behind one that is not
        width = 1  # one at a time until it is known how long the file is, and that somebody answers
        self._begin(path)
        try:
            while offset < end:
                while len(waiting) + len(ready) < width and ask_at < end:
                    length = min(self._part, end - ask_at)
                    waiting[ask_at] = self._ask(_Ask(ask_at, length))
                    ask_at += length
                for reply, content in self._wait(waiting):
                    ask = waiting.pop(reply.offset)
                    end = min(end, reply.total)
                    ready[ask.offset] = content
                    following, rest = ask.offset + len(content), ask.length - len(content)
                    if rest and following < end:
                        if not content:
                            raise UnreachableError(f"ota/request: {path}: nothing at byte {following} of {reply.total}")
                        waiting[following] = self._ask(_Ask(following, rest))  # it may send less than was asked for
                    width = IN_FLIGHT
                while content := ready.pop(offset, b""):
                    offset += len(content)
                    yield content
        finally:
            self._begin("")

    def close(self) -> None:
        """See `Way.close`."""
        self._begin("")

    # ---- inside ------------------------------------------------------------------------------------------

    def _begin(self, path: str) -> None:
        with self._lock:
            self._path = path
            self._asked.clear()
            self._inbox.clear()

    def _ask(self, ask: _Ask) -> _Ask:
        request = f"{self._prefix}-{next(self._numbers)}"
        ask.asked_ns = self._monotonic_ns()
        with self._lock:
            self._asked[request] = (ask.offset, ask.length)
        message = FetchRequest(request_id=request, path=self._path, offset=ask.offset, length=ask.length)
        if not self._exchange.send(encode(message)):
            raise UnreachableError("ota/request: no connection to the broker")
        return ask

    def _wait(self, waiting: Mapping[int, _Ask]) -> Iterator[tuple[FetchReply, bytes]]:
        """Wait for replies, and yield those that are waited for; ask again for what is overdue."""
        due = min(ask.asked_ns for ask in waiting.values()) + self._answer_ns
        with self._lock:
            self._lock.wait_for(lambda: self._inbox, max(0.0, (due - self._monotonic_ns()) / 1e9))
            came, self._inbox = self._inbox, []
        now = self._monotonic_ns()
        for reply, content in came:
            ask = waiting.get(reply.offset)
            if ask is None or len(content) > ask.length:  # the same part a second time
                self.ignored += 1
                continue
            if reply.error == "not-found":
                raise NotThereError(f"ota/request: {reply.path}: the bridge does not have it")
            if reply.error:
                raise UnreachableError(f"ota/request: {reply.path}: the bridge answers {reply.error[:100]!r}")
            if now - ask.asked_ns < QUICK_SECONDS * 1e9:
                self._part = min(PART_BYTES[1], self._part * 2)
            yield reply, content
        for ask in waiting.values():
            if now - ask.asked_ns >= self._answer_ns:
                self._ask_again(ask)

    def _ask_again(self, ask: _Ask) -> None:
        ask.tries += 1
        self._part = max(PART_BYTES[0], self._part // 2)
        if ask.tries >= TRIES:
            raise UnreachableError(
                f"ota/request: {self._path}: no answer at byte {ask.offset}, {ask.tries} times; does the bridge have "
                "registry.over_mqtt, and may this gateway use ota/request and ota/reply?"
            )
        self._ask(ask)

    def _take(self, payload: bytes) -> None:
        """Take a reply; called on the event loop, where whoever can write to the broker decides how often."""
        try:
            reply, content = unpack_part(payload)
        except MalformedMessageError:
            self.ignored += 1
            return
        with self._lock:
            asked = self._asked.pop(reply.request_id, None)
            if asked is None or (reply.path, reply.offset) != (self._path, asked[0]) or len(content) > asked[1]:
                self.ignored += 1
                return
            self._inbox.append((reply, content))
            self._lock.notify_all()
