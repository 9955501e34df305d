"""Faults of a link. Each is a context manager: the link is whole again when the block ends, however it ends.

Rules stand in the router, so that the processes at both ends see what they would of a real link. A direction is named
from the place: `to` is what travels towards it, `from` what it sends.
"""

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from hil.loopback.children import Child
from tests.chaos.namespaces import Network, Place

Direction = Literal["both", "to", "from"]

_tables: Final = itertools.count(1)


@contextmanager
def rule(network: Network, place: Place, statement: str, direction: Direction = "both") -> Iterator[None]:
    """Apply an nftables statement to what the router forwards to or from a place."""
    table = f"chaos{next(_tables)}"
    link = network.link(place)
    ways = {"to": ["oifname"], "from": ["iifname"], "both": ["iifname", "oifname"]}[direction]
    rules = "".join(f"{way} {link} {statement}; " for way in ways)
    text = f"table ip {table} {{ chain forward {{ type filter hook forward priority 0; {rules}}}; }}"
    network.run("router", "nft", text)
    try:
        yield
    finally:
        network.run("router", "nft", f"delete table ip {table}", check=False)


@contextmanager
def counted(network: Network, place: Place, match: str, direction: Direction) -> Iterator[Callable[[], int]]:
    """Count the packets that match; yields what returns the count."""
    with rule(network, place, f"{match} counter", direction):

        def count() -> int:
            return sum(int(found) for found in re.findall(r"counter packets (\d+)", network.ask("nft list ruleset")))

        yield count


@contextmanager
def partition(network: Network, place: Place, direction: Direction = "both") -> Iterator[None]:
    """Drop everything; nobody is told, as when a cable is pulled further away."""
    with rule(network, place, "drop", direction):
        yield


@contextmanager
def loss(network: Network, place: Place, percent: int) -> Iterator[None]:
    """Lose this share of the packets, each way, at random."""
    with rule(network, place, f"numgen random mod 100 < {percent} drop"):
        yield


@contextmanager
def resets(network: Network, place: Place) -> Iterator[None]:
    """Answer every TCP packet of an established connection with a reset, as some middle boxes do."""
    with rule(network, place, "meta l4proto tcp reject with tcp reset"):
        yield


@contextmanager
def no_new_connections(network: Network, place: Place) -> Iterator[None]:
    """Drop the first packet of every new connection; those that stand go on."""
    with rule(network, place, "tcp flags & (syn | ack) == syn drop"):
        yield


@contextmanager
def black_holed_mtu(network: Network, place: Place, size_bytes: int = 1300) -> Iterator[None]:
    """Drop packets above a size and tell nobody: path MTU discovery without the messages it lives on."""
    with rule(network, place, f"meta length > {size_bytes} drop"):
        yield


@contextmanager
def small_mtu(network: Network, place: Place, size_bytes: int = 576) -> Iterator[None]:
    """Make the link one of small packets; senders are told by ICMP, as they should be."""

    def set_mtu(size: int) -> None:
        network.run("router", "ip", "link", "set", network.link(place), "mtu", str(size))
        network.run(place, "ip", "link", "set", "eth0", "mtu", str(size))

    set_mtu(size_bytes)
    try:
        yield
    finally:
        set_mtu(1500)


@contextmanager
def rate(network: Network, place: Place, kbit: int, *, queue_ms: int = 2000) -> Iterator[None]:
    """Let so many kilobits a second through each way, behind a queue as deep as cheap modems have."""
    shape = f"tbf rate {kbit}kbit burst 3000 latency {queue_ms}ms"
    ends: tuple[tuple[Place | Literal["router"], str], ...] = (("router", network.link(place)), (place, "eth0"))
    try:
        for where, device in ends:
            network.run(where, "tc", "qdisc", "replace", "dev", device, "root", *shape.split())
        yield
    finally:
        for where, device in ends:
            network.run(where, "tc", "qdisc", "del", "dev", device, "root", check=False)


@dataclass(frozen=True, slots=True)
class Weather:
    """What the emulator does to each packet, each way. Shares are 0..1."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # uniform, to both sides of the delay; order is kept
    loss: float = 0.0
    reorder: float = 0.0  # so many overtake what was sent before them
    duplicate: float = 0.0
    corrupt: float = 0.0  # one byte is another one, and the TCP checksum is wrong
    forge: float = 0.0  # one byte is another one, and the checksum was made right again
    seed: int = 0


SATELLITE: Final = Weather(delay_ms=300.0, jitter_ms=25.0, loss=0.02)
"""600 ms there and back."""
CELLULAR: Final = Weather(delay_ms=50.0, jitter_ms=5.0, loss=0.01)


@contextmanager
def emulated(network: Network, place: Place, weather: Weather, log: Path) -> Iterator[Path]:
    """Lead the traffic of a place through the link emulator; connections that stand are kept.

    Yields a file in which the emulator writes what it did, when it is told to end.
    """
    report = log.with_suffix(".json")
    command = [sys.executable, "-m", "tests.chaos.link_emulator"]
    command += ["--near", network.namespace(place), "--far", network.router]
    command += ["--weather", json.dumps(asdict(weather)), "--report", str(report)]
    emulator = Child("link-emulator", command, log)
    address = network.address(place)
    report.unlink(missing_ok=True)  # of an earlier emulator of that name
    emulator.start()
    try:
        emulator.wait_until(report.exists, "the emulator is there")
        network.run("router", "ip", "route", "replace", f"{address}/32", "dev", "emulated")
        network.run(place, "ip", "route", "replace", "default", "dev", "emulated", "src", address)
        yield report
    finally:
        network.run("router", "ip", "route", "del", f"{address}/32", "dev", "emulated", check=False)
        network.run(place, "ip", "route", "replace", "default", "via", network.gateway_of(place), check=False)
        emulator.stop(5.0)
