"""The readings that are offered to every system, and what has become of each."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from types import TracebackType
from typing import Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

TOPIC = "site/press/reading"
_TICK_SECONDS = 0.005
IN_HAND_SECONDS = 2.0
_FIRST_MS = 1_767_225_600_000


def payload_of(number: int) -> bytes:
    """Return a reading; `n` counts from 1 and tells it from all others.

    It carries a time of its own, a millisecond apart from its neighbours: a system that tells readings apart by their
    time (ThingsBoard) would otherwise merge those that it takes in within the same millisecond.
    """
    reading = {"n": number, "ts": _FIRST_MS + number, "temperature": 21.5, "unit": "C"}
    return json.dumps(reading, separators=(",", ":")).encode()


def number_of(payload: bytes | bytearray) -> int:
    """Return the number of a reading."""
    return int(json.loads(payload)["n"])


class Leaf:
    """A sensor that publishes on the local broker with QoS 1, and keeps each reading until it is answered.

    `accepted` tells when (monotonic, seconds) the local broker has answered which number. From there on a reading
    is the business of the system behind it.
    """

    def __init__(self, port: int) -> None:
        self.accepted: dict[int, float] = {}
        self._port = port
        self._next = 1
        self._out: dict[int, int] = {}  # number of the reading by packet id
        self._answers: deque[tuple[int, float]] = deque()  # packet id, when; filled by paho's thread
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="leaf", clean_session=False)
        self._client.max_inflight_messages_set(1000)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_publish = lambda _c, _u, mid, _r, _p: self._answers.append((mid, time.monotonic()))

    def __enter__(self) -> Self:
        self._client.connect_async("127.0.0.1", self._port)
        self._client.loop_start()
        deadline = time.monotonic() + 20
        while not self._client.is_connected():
            assert time.monotonic() < deadline, "the local broker does not answer"
            time.sleep(_TICK_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def offered(self) -> int:
        """The highest number offered so far."""
        return self._next - 1

    def offer(self, count: int, rate: float) -> None:
        """Publish so many readings at an even rate."""
        started, done = time.monotonic(), 0
        while done < count:
            due = min(count, int((time.monotonic() - started) * rate) + 1)
            while done < due:
                # While the broker is away this says so, and keeps the message all the same.
                self._out[self._client.publish(TOPIC, payload_of(self._next), 1).mid] = self._next
                self._next += 1
                done += 1
            self.settle()
            time.sleep(_TICK_SECONDS)

    def settle(self) -> bool:
        """Note what was answered since; one thread at a time. True if nothing is left."""
        while self._answers:
            packet, at = self._answers.popleft()
            self.accepted[self._out.pop(packet)] = at
        return not self._out

    def wait(self, seconds: float = 60.0) -> None:
        """Wait until everything offered was answered."""
        deadline = time.monotonic() + seconds
        while not self.settle():
            assert time.monotonic() < deadline, f"the local broker leaves {len(self._out)} readings unanswered"
            time.sleep(_TICK_SECONDS)


Repeat = tuple[float, float]
"""When one copy of a reading was made, and when the next one (monotonic, seconds)."""


class Arrivals:
    """What has arrived at the far end: when first (monotonic, seconds), and how often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: dict[int, float] = {}
        self._made: dict[int, list[float]] = {}
        self.latest = 0.0

    def add(self, numbers: Iterable[int], made: Iterable[float] | None = None) -> None:
        """Note readings that are there now; `made` is when the system made each copy, where that is known."""
        now = time.monotonic()
        with self._lock:
            for number, at in zip(numbers, repeat(now) if made is None else made, strict=made is not None):
                self._first.setdefault(number, now)
                self._made.setdefault(number, []).append(at)
                self.latest = now

    def __len__(self) -> int:
        return len(self._first)

    def first(self) -> dict[int, float]:
        """Return when each number arrived first."""
        with self._lock:
            return dict(self._first)

    def repeats(self) -> list[Repeat]:
        """Return each copy of a reading that was there already, with the one before it."""
        with self._lock:
            return [pair for made in self._made.values() for pair in pairwise(sorted(made))]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of the readings that the local broker had accepted.

    `lost_while_down` were accepted between a kill of the gateway and the first one that came through once it was
    started again, `lost_in_hand` within `IN_HAND_SECONDS` before a kill: it had taken them, and had not made them
    durable. The others among the lost, `lost_otherwise`, were lost by a gateway that was there all the time, or by one
    that had called them stored.

    `doubles` are the copies beyond the first of each. Of `doubles_over_kill` one was made before a kill of the gateway
    and one after it: it had the reading in hand and had not answered for it, so its sender, here the local broker,
    hands it over once more (MQTT 5 §4.3.2, at least once). The others were made by one that was there all the time.
    """

    accepted: int
    lost: int
    lost_while_down: int
    lost_in_hand: int
    lost_otherwise: int
    doubles: int
    doubles_over_kill: int


def fate(
    accepted: Mapping[int, float],
    arrived: Iterable[int],
    repeats: Sequence[Repeat],
    outages: Sequence[tuple[float, float]],
) -> Fate:
    """Compare both ends; `outages` are the instants at which the gateway was killed and started again.

    One reading more may come through right after a kill: the gateway had it before its sender had the answer. Only what
    was accepted after the start shows that the gateway is back.
    """
    there = accepted.keys() & set(arrived)
    lost = accepted.keys() - there
    down = [
        (killed, min((accepted[number] for number in there if accepted[number] > started), default=float("inf")))
        for killed, started in outages
    ]
    while_down = {number for number in lost if any(at < accepted[number] < back for at, back in down)}
    in_hand = {
        number
        for number in lost
        if number not in while_down and any(0 <= at - accepted[number] < IN_HAND_SECONDS for at, _ in down)
    }
    otherwise = len(lost) - len(while_down) - len(in_hand)
    over_kill = sum(
        any(before <= started and killed <= after for killed, started in outages) for before, after in repeats
    )
    return Fate(len(accepted), len(lost), len(while_down), len(in_hand), otherwise, len(repeats), over_kill)
