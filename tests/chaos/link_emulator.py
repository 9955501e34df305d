"""A link in user space: two TUN devices in two namespaces, and between them delay, loss, disorder and damage.

For kernels without netem. Each way has a queue of its own, ordered by the time at which a packet is due.
"""

import argparse
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import signal
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from tests.chaos.namespaces import enter
from tests.chaos.network import Weather

DEVICE: Final = "emulated"
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_TCP: Final = 6
_PACKET_BYTES: Final = 65_536
_QUEUE_PACKETS: Final = 10_000


class Way:
    """One direction."""

    def __init__(self, weather: Weather, chance: random.Random, target: int) -> None:
        self._weather = weather
        self._chance = chance
        self._target = target
        self._queue: list[tuple[float, int, bytes]] = []
        self._serial = itertools.count()
        self._last_due = 0.0
        self.counts: Counter[str] = Counter()

    def take(self, packet: bytes, now: float) -> None:
        """Decide the fate of a packet."""
        weather, draw = self._weather, self._chance.random
        self.counts["taken"] += 1
        if draw() < weather.loss or len(self._queue) >= _QUEUE_PACKETS:
            self.counts["lost"] += 1
            return
        if draw() < weather.corrupt:
            packet = self._damaged(packet)
            self.counts["corrupted"] += 1
        if len(packet) > 120 and draw() < weather.forge:
            packet = forged(packet, self._chance)
            self.counts["forged"] += 1
        delay = (weather.delay_ms + self._chance.uniform(-1, 1) * weather.jitter_ms) / 1000
        if draw() < weather.reorder:
            due = now  # overtakes
            self.counts["reordered"] += 1
        else:
            due = self._last_due = max(self._last_due, now + delay)
        copies = 2 if draw() < weather.duplicate else 1
        self.counts["duplicated"] += copies - 1
        for _ in range(copies):
            heapq.heappush(self._queue, (due, next(self._serial), packet))

    def deliver(self, now: float) -> None:
        """Hand over what is due."""
        while self._queue and self._queue[0][0] <= now:
            _, _, packet = heapq.heappop(self._queue)
            try:
                os.write(self._target, packet)
            except OSError:  # a packet so damaged that the kernel does not take it
                self.counts["refused"] += 1

    @property
    def due(self) -> float | None:
        """When the next packet is to be handed over."""
        return self._queue[0][0] if self._queue else None

    def _damaged(self, packet: bytes) -> bytes:
        at = self._chance.randrange(20, len(packet)) if len(packet) > 20 else 0
        return packet[:at] + bytes([packet[at] ^ self._chance.randrange(1, 256)]) + packet[at + 1 :]


def forged(packet: bytes, chance: random.Random) -> bytes:
    """Change one byte of the content of a TCP packet and make its checksum right, as broken hardware can."""
    header = (packet[0] & 0x0F) * 4
    if packet[0] >> 4 != 4 or packet[9] != _TCP:
        return packet
    content = header + (packet[header + 12] >> 4) * 4
    if content >= len(packet):
        return packet
    changed = bytearray(packet)
    changed[chance.randrange(content, len(packet))] ^= chance.randrange(1, 256)
    changed[header + 16 : header + 18] = b"\0\0"
    pseudo = bytes(changed[12:20]) + struct.pack("!BBH", 0, _TCP, len(changed) - header)
    changed[header + 16 : header + 18] = checksum(pseudo + bytes(changed[header:])).to_bytes(2, "big")
    return bytes(changed)


def checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def open_tun(namespace: str) -> int:
    """Make the device in a namespace and return its descriptor; the device goes with it."""
    enter(namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    subprocess.run(["ip", "link", "set", DEVICE, "up"], check=True)
    return descriptor


def run(near: int, far: int, weather: Weather, stopping: list[bool]) -> Counter[str]:
    """Carry packets until told to stop; return what was done to them."""
    chance = random.Random(weather.seed)
    ways = {near: Way(weather, chance, far), far: Way(weather, chance, near)}
    while not stopping:
        now = time.monotonic()
        due = min((way.due for way in ways.values() if way.due is not None), default=now + 0.2)
        ready, _, _ = select.select(list(ways), [], [], max(0.0, min(due - now, 0.2)))
        for descriptor in ready:
            for _ in range(64):
                try:
                    packet = os.read(descriptor, _PACKET_BYTES)
                except BlockingIOError:
                    break
                ways[descriptor].take(packet, time.monotonic())
        for way in ways.values():
            way.deliver(time.monotonic())
    return sum((way.counts for way in ways.values()), Counter())


def main() -> None:
    """Be a link until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--near", required=True)
    parser.add_argument("--far", required=True)
    parser.add_argument("--weather", required=True)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    weather = msgspec.json.decode(options.weather, type=Weather)
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    near, far = open_tun(options.near), open_tun(options.far)
    options.report.write_text("{}")
    options.report.write_text(json.dumps(run(near, far, weather, stopping)))


if __name__ == "__main__":
    main()
